"""Runs a grid: what is left of it goes to an executor, and the whole of it into a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from firefly_cl.benchmark.executors import Executor, Job
from firefly_cl.benchmark.folders import check_writable, discard
from firefly_cl.benchmark.grid import grid_rows, read_grid
from firefly_cl.benchmark.grid_display import GridDisplay
from firefly_cl.benchmark.part import part_of
from firefly_cl.benchmark.placement import executor_of
from firefly_cl.benchmark.plan import check_data_dir, check_save_every
from firefly_cl.benchmark.standing import Standing, standings
from firefly_cl.errors import FileError

if TYPE_CHECKING:
    from firefly_cl.commands import Benchmark

OUT = Path("runs")
"""Where runs are kept if neither the grid nor the command line says so."""


def run_grid(command: Benchmark, executor: Executor | None = None) -> int:
    """Run what is left of a grid, or of a part, and print its table; exit code 1 if a cell failed.

    Everything is checked before the first cell starts. Raises FireflyError; KeyboardInterrupt,
    which tells what is done.
    """
    grid, part = read_grid(command.grid), part_of(command)
    check_data_dir(command.data_dir)
    check_save_every(command.save_every)
    executor = executor or executor_of(command)
    out = command.out or grid.out or OUT
    cells = grid.cells()  # loads torch
    part.check(cells)

    def standing_now() -> list[Standing]:
        # folders are named by all cells of the grid
        return [standing for standing in standings(cells, out) if part.has(standing.grid_cell)]

    found = standing_now()
    if command.dry_run:
        _print_standings(found)
        return _end(command, out, found)
    _make_ready(found, command, out)
    found = standing_now()
    errors = _run(found, command, executor, out)
    found = [replace(s, error=errors.get(s.folder, s.error)) for s in standing_now()]
    _print_results(found)
    return _end(command, out, found)


def _make_ready(found: Sequence[Standing], command: Benchmark, out: Path) -> None:
    """Check folders, data and settings, and discard what is not finished if asked to.

    Raises FireflyError, and has discarded nothing then.
    """
    from firefly_cl.benchmark.environment import use_threads
    from firefly_cl.benchmark.runner import Scenarios, check_data, check_strategies

    finished = [
        (standing.grid_cell.cell, standing.folder, standing.record.data)
        for standing in found
        if standing.finished and standing.record is not None
    ]
    check_data(finished, command.data_dir, download=command.download)
    left = [standing for standing in found if not standing.finished]
    if not command.overwrite:
        for standing in left:
            if standing.obstacle is not None:
                raise FileError(standing.obstacle)
    for folder in (out, *(standing.folder for standing in left)):
        check_writable(folder)
    if left:
        use_threads(1)  # the cores are for the workers
        scenarios = Scenarios(command.data_dir, command.download)
        check_strategies([standing.grid_cell.cell for standing in left], scenarios)
    if command.overwrite:
        for standing in left:
            discard(standing.folder)


def _run(
    found: Sequence[Standing], command: Benchmark, executor: Executor, out: Path
) -> Mapping[Path, str]:
    """Run what is not finished; what ended a cell early, by its folder."""
    left = [standing for standing in found if not standing.finished]
    if not left:
        return {}
    jobs = [
        Job(
            standing.grid_cell.cell,
            standing.folder,
            standing.threads,
            command.data_dir,
            command.download,
            save_every=command.save_every,
        )
        for standing in left
    ]
    titles = {standing.folder: _title(standing, found) for standing in found}
    with GridDisplay(titles, len(found) - len(left)) as display:
        try:
            executor.run(jobs, display.hear)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted with {display.finished} of {len(found)} cells finished, kept in "
                f"{out}: the same command does the rest"
            ) from None
    return display.errors


def _title(standing: Standing, found: Sequence[Standing]) -> str:
    cell = standing.grid_cell
    several = len({other.grid_cell.scenario for other in found}) > 1
    return f"{cell.scenario + ' ' if several else ''}{cell.strategy} seed {cell.cell.seed}"


def _print_standings(found: Sequence[Standing]) -> None:
    console = Console()
    for scenario in dict.fromkeys(standing.grid_cell.scenario for standing in found):
        table = Table(
            title=scenario,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for column in ("strategy", "seed", "digest"):
            table.add_column(column, justify="right" if column == "seed" else "left", no_wrap=True)
        table.add_column("state", overflow="fold")
        for standing in found:
            cell = standing.grid_cell
            if cell.scenario == scenario:
                row = (cell.strategy, str(cell.cell.seed), cell.cell.digest(), str(standing))
                table.add_row(*(Text(part) for part in row))
        console.print(table)


def _print_results(found: Sequence[Standing]) -> None:
    from firefly_cl.benchmark.report import print_tables, summaries

    rows = grid_rows([standing.grid_cell for standing in found])
    finished = [standing.record for standing in found if standing.record and standing.finished]
    if finished:
        print_tables(summaries(finished, rows))
    for standing in found:
        if not standing.finished:
            print(f"error: {standing.folder}: {standing.error}", file=sys.stderr)


def _end(command: Benchmark, out: Path, found: Sequence[Standing]) -> int:
    if command.json:
        print(json.dumps({"out": str(out), "cells": [_as_json(standing) for standing in found]}))
    return 0 if command.dry_run or all(standing.finished for standing in found) else 1


def _as_json(standing: Standing) -> dict[str, Any]:
    cell = standing.grid_cell.cell
    told: dict[str, Any] = {
        "scenario": standing.grid_cell.scenario,
        "strategy": standing.grid_cell.strategy,
        "seed": cell.seed,
        "digest": cell.digest(),
        "folder": str(standing.folder),
        "state": standing.state,
        "tasks": 0 if standing.record is None else len(standing.record.accuracy),
        "error": standing.error or standing.obstacle,
    }
    if standing.record is not None and standing.finished:
        for name in ("average_accuracy", "average_forgetting", "parameters", "bytes", "seconds"):
            told[name] = getattr(standing.record, name)
    return told
