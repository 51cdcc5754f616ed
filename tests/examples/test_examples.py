"""The examples run offline, learn, and forget nothing."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def main_of(name: str) -> Callable[[], Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_every_example_has_a_test() -> None:
    tested = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'main_of("{path.stem}")' in tested


@pytest.mark.filterwarnings("ignore:no QP solver")
def test_avalanche_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    monkeypatch.setattr(sys, "argv", ["avalanche_pipeline.py", "--log", str(log)])
    results = main_of("avalanche_pipeline")()
    assert len(results) == 5
    by_name = {name.partition("/")[0] + name[-7:]: v for name, v in results[-1].items()}
    for task in range(4):
        assert by_name[f"ExperienceForgetting/Exp00{task}"] == 0
        assert by_name[f"Top1_Acc_Exp/Exp00{task}"] > 0.85  # chance is 0.5
    assert "Top1_Acc_Stream" in capsys.readouterr().out
    assert "Top1_Acc_Stream" in log.read_text()


def test_own_template(capsys: pytest.CaptureFixture[str]) -> None:
    accuracies = main_of("own_template")()
    assert [len(row) for row in accuracies] == [1, 2, 3, 4, 5]
    for task, when_learnt in enumerate(row[-1] for row in accuracies):
        assert when_learnt > 0.85
        assert all(row[task] == when_learnt for row in accuracies[task:])
    assert "task 4, epoch 1: grew" in capsys.readouterr().out


def test_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    accuracies = main_of("plain_loop")()
    assert len(accuracies) == 3
    assert min(accuracies) > 0.85
    out = capsys.readouterr().out
    assert out.count("grew") == 3
    assert out.count("logits as when it ended: True, extracted alike: True") == 3
