"""`firefly-cl tune` on learners that take no time, one of which has settings to search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_fakes import FakeLearner, InThisProcess, ResumableFake, Sealed, scenario
from torch import Tensor

from firefly_cl import cli
from firefly_cl.benchmark import placement
from firefly_cl.benchmark.executors import Job
from firefly_cl.benchmark.trials import Trial, read_trial
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.errors import DivergenceError
from firefly_cl.scenarios import SCENARIOS
from firefly_cl.search_space import Choice, Range, searched

GRID = """
seeds = [3, 4]
epochs = 2
[scenarios.fake]
[strategies.sprung]
[strategies.plain]
"""
OUT = Path("tuning/fake")


@dataclass(frozen=True)
class SprungOptions:
    strength: float = searched(1.0, Range(0.1, 10.0, log=True))
    kind: str = searched("soft", Choice(("soft", "hard")))
    memory: int = 5


class Sprung(FakeLearner):
    """Right for a share of the images of each kind: the nearer strength is to 3, the larger."""

    def __init__(self, setup: Setup) -> None:
        self.options = read_options(setup.options, SprungOptions)
        super().__init__(replace(setup, options={}))

    def train(self, experience: Any) -> None:
        if self.options.strength > 5:
            raise DivergenceError("the loss became NaN")
        super().train(experience)

    def logits(self, task: int, images: Tensor) -> Tensor:
        right = super().logits(task, images)
        quality = min(self.options.strength, 3.0) / 3 - 0.2 * (self.options.kind == "hard")
        right[round(len(right) * max(quality, 0.0)) :] *= -1
        return right


Tune = Callable[..., tuple[int, list[Job]]]


def tune_with_fakes(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Tune:
    """Runs the command on a grid, in `folder`; gives the exit code and the jobs that were run."""

    def build(options: Any) -> Any:
        found = scenario(options.first_tasks or 3, options.seed)
        return replace(found, tasks=tuple(replace(t, test=Sealed()) for t in found.tasks))  # type: ignore[arg-type]

    monkeypatch.setitem(SCENARIOS._objects, "fake", build)
    monkeypatch.setitem(STRATEGIES._objects, "sprung", Sprung)
    monkeypatch.setitem(STRATEGIES._options, "sprung", SprungOptions)
    monkeypatch.setitem(STRATEGIES._objects, "plain", ResumableFake)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(
        *arguments: str, grid: str = GRID, executor: InThisProcess | None = None
    ) -> tuple[int, list[Job]]:
        Path("grid.toml").write_text(grid)
        executor = executor or InThisProcess()
        with monkeypatch.context() as patch:
            patch.setattr(placement, "LocalProcesses", lambda *a: executor)
            command = ["tune", "grid.toml", "--trials", "4", "--tasks", "2", *arguments]
            code = cli.execute(cli._parse(command))
        return code, executor.jobs

    return run


def trials(strategy: str = "sprung", out: Path = OUT) -> list[Trial]:
    found = [read_trial(path) for path in sorted((out / strategy).glob("*.json"))]
    return [trial for trial in found if trial is not None]


def told(out: Path = OUT) -> dict[str, list[Any]]:
    """What a search has found, without times and versions."""
    return {
        strategy: [(t.number, t.settings, t.scores, t.error) for t in trials(strategy, out)]
        for strategy in ("sprung", "plain")
    }


def tuned() -> Path:
    return Path("tuning/tuned.toml")
