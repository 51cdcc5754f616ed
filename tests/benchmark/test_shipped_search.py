"""The grid of CIFAR-100 has the settings that the committed trials found best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.grid import read_grid
from firefly_cl.benchmark.search import Search, searches_of
from firefly_cl.benchmark.trials import Trial, best, read_trial

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TRIALS = 6
NOT_SEARCHED = {"gem": {"sample_size"}, "pnn": {"column"}}
"""What the grid's rows have of their own, for their cells' time and size."""


@pytest.fixture(scope="module")
def searches() -> list[Search]:
    grid = read_grid(BENCHMARKS / "tuning" / "split_cifar100.toml")
    return searches_of(
        grid, seeds=[0], tasks=3, keep=["weight_decay"], out=BENCHMARKS / "tuning" / "trials"
    )


def trials_of(search: Search) -> list[Trial]:
    found = [read_trial(search.path(number)) for number in range(TRIALS)]
    return [trial for trial in found if trial is not None]


def test_every_strategy_had_as_many_trials_of_this_search(searches: list[Search]) -> None:
    for search in searches:
        trials = trials_of(search)
        assert [trial.number for trial in trials] == list(range(TRIALS)), search.strategy
        assert all(trial.search == search.identity() for trial in trials), search.strategy
        assert not search.path(TRIALS).exists()


def test_the_grid_has_the_settings_of_the_best_trials(searches: list[Search]) -> None:
    grid = read_grid(BENCHMARKS / "split_cifar100.toml")
    asked = {
        found.strategy: found.cell
        for found in grid.cells()
        if found.cell.seed == 0 and found.scenario == "superclass-20"
    }
    chosen = {search.strategy: settled(search) for search in searches}
    assert asked.keys() == chosen.keys()
    for name, cell in asked.items():
        own = NOT_SEARCHED.get(name, set())
        assert settings_of(cell, own) == settings_of(chosen[name], own), name


def settled(search: Search) -> Cell:
    trial = best(trials_of(search))
    assert trial is not None
    (cell,) = search.cells_with(trial.settings)
    return cell


def settings_of(cell: Cell, but: set[str]) -> Cell:
    """A cell without what it streams and answers."""
    options = {name: value for name, value in cell.options.items() if name not in but}
    whole = replace(cell, options=options, tasks=None, evaluate_on="test")
    return replace(whole, width=0.0) if "width" in but else whole
