"""A tiny scenario, a learner without a network, and records made by a rule: fast and exact."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.executors import Hear, Job, News
from firefly_cl.benchmark.records import Record, average_accuracy, average_forgetting
from firefly_cl.benchmark.worker import perform
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Progress, Setup
from firefly_cl.errors import DivergenceError, FileError
from firefly_cl.scenarios import SCENARIOS, Images, Scenario, Task


@dataclass(frozen=True)
class FakeScenario(Scenario):
    """A scenario whose stream is its tasks, so that tests need not import Avalanche."""

    def benchmark(self, *, normalised: bool = False) -> Any:
        return SimpleNamespace(train_stream=list(self.tasks))


def scenario(n_tasks: int = 3, seed: int = 0) -> FakeScenario:
    """Tasks of two classes; the first pixel is the label in even tasks, 1 - label in odd ones."""
    generator = torch.Generator().manual_seed(seed)

    def images(task: int, n: int) -> Images:
        labels = torch.arange(n) % 2
        pixels = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
        pixels[:, 0, 0, 0] = (labels if task % 2 == 0 else 1 - labels).to(torch.uint8)
        return Images(pixels, labels, task)

    tasks = tuple(
        Task(t, f"task-{t}", ("a", "b"), images(t, 20), images(t, 10), images(t, 40))
        for t in range(n_tasks)
    )
    return FakeScenario("fake", tasks, (0.5,), (0.5,), (1, 4, 4), flip=False)


@dataclass
class FakeLearner:
    """Answers with one weight (2, 1) on the first pixel; a forgetful one keeps only the last.

    Diverges at, or is interrupted at, the task given in the options.
    """

    setup: Setup
    tasks_trained: int = 0
    growth_events: list[dict[str, object]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0})
    weights: list[Tensor] = field(default_factory=list)

    def train(self, experience: Task) -> None:
        task = experience.index
        if self.setup.options.get("diverge") == str(task):
            raise DivergenceError("the loss became NaN: lower --learning-rate")
        if self.setup.options.get("interrupt") == str(task):
            raise KeyboardInterrupt
        for epoch in range(self.setup.recipe.epochs):
            self.setup.progress(
                Progress(
                    task,
                    len(self.setup.scenario.tasks),
                    "train",
                    epoch + 1,
                    self.setup.recipe.epochs,
                    0.1,
                    0.9,
                    2,
                )
            )
        sign = 1.0 if task % 2 == 0 else -1.0
        self.weights.append(torch.tensor([-sign, sign]))
        self.tasks_trained += 1
        self.seconds["train"] += 0.5
        self.seconds["evaluate"] = self.seconds.get("evaluate", 0.0) + 0.25
        self.growth_events.append({"task": task, "score": float("nan"), "units": [1, 2]})

    def logits(self, task: int, images: Tensor) -> Tensor:
        self.seconds["evaluate"] = self.seconds.get("evaluate", 0.0) + 1000.0
        forgetful = self.setup.options.get("forget") == "yes"
        return fake_logits(self.weights[-1] if forgetful else self.weights[task], images)

    def floats(self) -> int:
        return 2 * self.tasks_trained

    def bytes(self) -> int:
        return 4 * self.floats()

    def flops(self, task: int) -> int:
        return 4

    def widths(self) -> dict[str, list[int]]:
        return {"first": [2] * self.tasks_trained}

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        forgetful = self.setup.options.get("forget") == "yes"
        weights = [self.weights[-1]] * len(self.weights) if forgetful else self.weights
        save_file({str(t): w.clone() for t, w in enumerate(weights)}, folder / "fake.safetensors")
        (folder / "model.json").write_text(json.dumps({"kind": "fake"}))


class ResumableFake(FakeLearner):
    """A FakeLearner that goes on from its files, where nothing interrupts it."""

    resumed = False

    def train(self, experience: Task) -> None:
        if self.setup.options.get("stop") == str(experience.index) and not self.resumed:
            raise KeyboardInterrupt
        super().train(experience)

    def resume(self, folder: Path, tasks: int) -> None:
        weights = load_file(folder / "fake.safetensors")
        if len(weights) != tasks:
            raise FileError(f"{folder} holds {len(weights)} tasks, not {tasks}")
        self.weights = [weights[str(task)] for task in range(tasks)]
        self.tasks_trained, self.resumed = tasks, True


class Sealed:
    """Test images that nothing may read."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} of test images was read")


class InThisProcess:
    """An executor that runs one job after another; it is stopped after so many."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.jobs: list[Job] = []
        self.stop_after = stop_after

    def run(self, jobs: Sequence[Job], hear: Hear) -> None:
        for job in jobs:
            if len(self.jobs) == self.stop_after:
                raise KeyboardInterrupt
            self.jobs.append(job)
            hear(job, News("started"))
            perform(job, lambda news, job=job: hear(job, news))


def fake_logits(weight: Tensor, images: Tensor) -> Tensor:
    return (images[:, 0, 0, :1].float() - 0.5) * weight


def load(folder: Path) -> Any:
    weights = load_file(folder / "fake.safetensors")
    return lambda task, images: fake_logits(weights[str(task)], images)


def cell(**changes: Any) -> Cell:
    base = Cell("fake", "fake", 0, "mlp", recipe={"epochs": 2})
    return replace(base, **changes)


def record(
    strategy: str = "firefly",
    seed: int = 0,
    n_tasks: int = 4,
    scenario_name: str = "split-digits",
    forgets: float = 0.0,
    level: float = 0.9,
    layers: int = 5,
    **configuration: Any,
) -> Record:
    """A finished record made by a rule, as `run` would have written it."""
    draw = random.Random(f"{strategy}{seed}")
    first = [min(1.0, level + draw.uniform(-0.08, 0.08)) for _ in range(n_tasks)]
    accuracy: list[list[float | None]] = [
        [max(0.2, first[j] - forgets * (i - j)) if j <= i else None for j in range(n_tasks)]
        for i in range(n_tasks)
    ]
    grows = strategy == "firefly"
    sizes = [100_000 + 40_000 * t if grows else 260_000 + 500 * t for t in range(n_tasks)]
    return Record(
        configuration={
            **Cell(scenario_name, strategy, seed, "resnet9", recipe={"epochs": 4}).as_json(),
            **configuration,
        },
        versions={"python": "3.11.4", "torch": "2.14.1", "commit": "0" * 40},
        hardware={"processor": "A processor", "cores": 2, "threads": 1, "device": "cpu"},
        data={"sha256": "ab", "images": {"train": 10}},
        seed=seed,
        tasks=[f"large omnivores and herbivores {t}" for t in range(n_tasks)],
        finished=True,
        accuracy=accuracy,
        validation_accuracy=accuracy,
        average_accuracy=average_accuracy(accuracy),
        average_forgetting=average_forgetting(accuracy),
        parameters=sizes[-1],
        bytes=4 * sizes[-1],
        flops=[3_000_000 + 100_000 * t for t in range(n_tasks)],
        parameters_by_task=sizes,
        bytes_by_task=[4 * n for n in sizes],
        seconds={"train": 100.0 + seed, "grow": 10.0 if grows else 0.0, "test": 1.0},
        growth_events=[
            {
                "task": t,
                "epoch": 0,
                "source": t // 2,
                "probe_accuracies": [0.3 + 0.6 / (1 + abs(t // 2 - o)) for o in range(t)],
            }
            for t in range(1, n_tasks)
        ]
        if grows
        else [],
        reuse=[[3 * (t + o) if o < t else 0 for o in range(n_tasks)] for t in range(n_tasks)]
        if grows
        else [],
        widths={
            f"stages.{layer}.convolution": [
                16 + 8 * layer,
                *([4 + (t + layer) % 5 for t in range(1, n_tasks)] if grows else []),
            ]
            for layer in range(layers)
        },
    )


def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: Any) -> None:
    """A scenario "fake", strategies "fake" and "other", and an empty folder to run them in."""

    def build(options: Any) -> Any:
        return scenario(options.first_tasks or 3, options.seed)

    monkeypatch.setitem(SCENARIOS._objects, "fake", build)
    monkeypatch.setitem(STRATEGIES._objects, "fake", FakeLearner)
    monkeypatch.setitem(STRATEGIES._objects, "other", other)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
