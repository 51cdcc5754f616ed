"""Small runs that are stopped at a chosen moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_search import SMALL_OPTIONS

from firefly_cl.benchmark.cell import run_cell
from firefly_cl.benchmark.configuration import Cell
from firefly_cl.continual import STRATEGIES
from firefly_cl.scenarios import SCENARIOS, Scenario, ScenarioOptions

GROWING = Cell(
    "split-digits",
    "firefly",
    0,
    "mlp",
    width=0.25,
    budget=24_000,
    tasks=3,
    split_into=3,
    recipe={"epochs": 3, "mixup": 0.2, "augmentation": {"crop_padding": 1, "flip": False}},
    options={"grow_at": "0.3,0.6", "patience": "-10", **SMALL_OPTIONS},
)

BASELINE = replace(GROWING, strategy="naive", budget=None, options={})

LAST_WRITE = {1: 3, 2: 8, 3: 13}
"""Which write of checkpoints is that of the record, after so many tasks."""


class Killed(BaseException):
    """What a test stops a run with; no part of a run handles it."""


def digits(cell: Cell) -> Scenario:
    options = ScenarioOptions(
        seed=cell.seed,
        n_tasks=cell.split_into,
        first_tasks=cell.tasks,
        validation=cell.validation,
    )
    return SCENARIOS.get("split-digits")(options)


def run(folder: Path, cell: Cell = GROWING, scenario: Scenario | None = None) -> list[str]:
    """Run the cell; what was said of an earlier run."""
    folder.mkdir(exist_ok=True)
    said: list[str] = []
    run_cell(
        cell,
        scenario or digits(cell),
        STRATEGIES.get(cell.strategy),
        folder,
        threads=1,
        progress=lambda progress: None,
        resumed=lambda record, where: said.append(f"continues {where}"),
        discarded=lambda record, why: said.append(why),
    )
    return said


def stop(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool = False
) -> None:
    """Make a call of a function the moment at which the run is killed."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def stopping(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        result = original(*arguments, **named)
        if calls == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, stopping)


def interrupted(folder: Path, owner: Any, name: str, call: int, *, after: bool = False) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, owner, name, call, after=after)
        with pytest.raises(Killed):
            run(folder)
