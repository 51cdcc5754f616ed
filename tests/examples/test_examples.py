"""The examples run offline, learn, and forget nothing."""

from __future__ import annotations

import functools
import runpy
import statistics
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


SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def toy() -> Callable[[str | None, int], float]:
    """Error of the toy after seven rounds, by criterion (None: not grown) and seed; run once."""
    grow = main_of("toy_rbf").__globals__["grow"]

    @functools.cache
    def error(criterion: str | None, seed: int) -> float:
        run = grow(criterion, seed, rounds=7, steps=120)
        assert run.units[-1] == (1 if criterion is None else 8)
        assert len(run.errors) == len(run.fits) == 8
        return float(run.errors[-1])

    return error


@pytest.mark.parametrize("seed", SEEDS)
def test_the_toy_grows_far_below_what_one_unit_can_do(
    toy: Callable[[str | None, int], float], seed: int
) -> None:
    assert toy("firefly", seed) < toy(None, seed) / 20


def test_the_toy_grows_better_by_firefly_than_by_chance(
    toy: Callable[[str | None, int], float],
) -> None:
    # Single seeds go either way; the geometric mean counts each alike.
    ratios = [toy("firefly", seed) / toy("random", seed) for seed in range(8)]
    assert statistics.geometric_mean(ratios) < 0.7


def test_toy_rbf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "fits.png"
    arguments = ["--criteria", "splitting,random", "--rounds", "2", "--steps", "5"]
    runs = main_of("toy_rbf")([*arguments, "--picture", str(picture)])
    assert list(runs) == ["splitting", "random", "not grown"]
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    assert "random: 3 units, error" in capsys.readouterr().out
