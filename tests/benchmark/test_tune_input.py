"""What `firefly-cl tune` refuses ends with one line, and nothing is made."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tune_fakes import GRID, Tune


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--trials", "0"), "--trials is 0: give 1 or more"),
        (("--tasks", "0"), "--tasks is 0: give 1 or more"),
        (("--sampler-seed", "-1"), "--sampler-seed is -1: give 0 or more"),
        (("--seeds", "a"), "--seeds has 'a'"),
        (("--keep", "strenght"), "no strategy here searches: did you mean 'strength'?"),
        (
            ("--keep", "learning_rate,weight_decay"),
            "nothing is left to search for 'plain' on 'fake': take it out of the grid",
        ),
        (("--data-dir", "nowhere"), "nowhere does not exist"),
    ],
)
def test_bad_arguments(
    arguments: tuple[str, ...], says: str, tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(*arguments) == (2, [])
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not Path("tuning").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("strategies.plain", "strategies.plane", "unknown strategy 'plane': did you mean 'plain'?"),
        ("epochs = 2", "tasks = 1", "--tasks is 2, and the grid streams 1 of 'fake': give 1"),
        ("epochs = 2", "validation = 0", "needs a --validation above 0"),
        ("scenarios.fake]", 'scenarios."../x"]\nscenario = "fake"', "cannot name a folder"),
        ("epochs = 2", "epoch = 2", "unknown key 'epoch': did you mean 'epochs'?"),
    ],
)
def test_bad_grids(
    old: str, new: str, says: str, tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(grid=GRID.replace(old, new)) == (2, [])
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not Path("tuning").exists()


def test_without_optuna(
    tune: Tune, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert tune() == (2, [])
    err = capsys.readouterr().err
    assert err.endswith("pip install optuna\n") and err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(
    tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("locked").mkdir(mode=0o500)
    assert tune("--out", "locked/tuning") == (2, [])
    assert "--out" in capsys.readouterr().err
