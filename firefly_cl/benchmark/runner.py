"""Runs cells one after another, or several at a time, and none that is already recorded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firefly_cl.benchmark.cell import fingerprint, run_cell, setup_of
from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.display import Display
from firefly_cl.benchmark.executors import Executor, Job
from firefly_cl.benchmark.folders import begun_threads, check_writable, discard, finished_record
from firefly_cl.benchmark.grid_display import GridDisplay
from firefly_cl.benchmark.records import Record
from firefly_cl.continual.learner import silent
from firefly_cl.errors import DivergenceError, FileError

if TYPE_CHECKING:
    from firefly_cl.scenarios import Scenario


@dataclass(frozen=True)
class Planned:
    """A cell to run, the folder that keeps it, and what to call it."""

    cell: Cell
    folder: Path
    title: str


@dataclass(frozen=True)
class Outcome:
    """What became of one cell: a record, or the error that ended it."""

    cell: Cell
    folder: Path
    record: Record | None
    skipped: bool = False
    error: str | None = None


def left_of(plan: Sequence[Planned], outcomes: list[Outcome], *, overwrite: bool) -> list[Planned]:
    """The cells that must (still) run; the others are added to `outcomes`.

    Every folder is checked. Raises FileError.
    """
    waiting: list[Planned] = []
    for planned in plan:
        check_writable(planned.folder)
        record = None if overwrite else finished_record(planned.cell, planned.folder)
        if record is None:
            waiting.append(planned)
        else:
            outcomes.append(Outcome(planned.cell, planned.folder, record, skipped=True))
    return waiting


def check_data(
    finished: Iterable[tuple[Cell, Path, Mapping[str, Any]]],
    data_dir: Path | None,
    *,
    download: bool,
) -> None:
    """Raise FileError where what is finished was run on other images than those in `data_dir`.

    finished: cells with their folders and the `data` of their records. One of each stream is
    looked at; without a `data_dir`, or FIREFLY_DATA, the images are what they always are.
    """
    root = data_dir or os.environ.get("FIREFLY_DATA")
    if not root:
        return
    scenarios = Scenarios(data_dir, download)
    looked_at = set()
    for cell, folder, data in finished:
        stream = Scenarios.key(cell)
        if stream in looked_at:
            continue
        looked_at.add(stream)
        if fingerprint(scenarios.of(cell)) != data:
            raise FileError(
                f"{folder} holds a run on other images than those in {root}: choose another "
                "--out, or remove that folder"
            )


def run_cells(
    plan: Sequence[Planned],
    *,
    threads: int,
    data_dir: Path | None,
    download: bool,
    overwrite: bool,
    save_every: float,
    display: Display,
    outcomes: list[Outcome],
) -> None:
    """Run each cell in its folder, adding to `outcomes` as they end.

    Every folder is checked before the first cell starts. A cell that diverges does not stop the
    others; any other error does. Raises FireflyError.
    """
    waiting = left_of(plan, outcomes, overwrite=overwrite)
    check_data(_kept(outcomes), data_dir, download=download)
    for planned in plan:
        if planned not in waiting:
            display.skipped(planned.title, planned.folder)
    if not waiting:
        return

    from firefly_cl.continual import STRATEGIES

    builders = {each.cell.strategy: STRATEGIES.get(each.cell.strategy) for each in waiting}
    scenarios = Scenarios(data_dir, download)
    check_strategies([planned.cell for planned in waiting], scenarios)
    for number, planned in enumerate(waiting):
        cell, folder = planned.cell, planned.folder
        display.cell_started(planned.title, number, len(waiting))
        scenario = scenarios.of(cell)
        try:
            record = run_cell(
                cell,
                scenario,
                builders[cell.strategy],
                folder,
                threads=threads,
                overwrite=overwrite,
                save_every=save_every,
                progress=display.progress,
                task_ended=display.task_ended,
                resumed=display.cell_resumed,
                discarded=display.cell_discarded,
            )
        except DivergenceError as error:
            outcomes.append(Outcome(cell, folder, None, error=str(error)))
            display.cell_failed(planned.title)
        else:
            outcomes.append(Outcome(cell, folder, record))
            display.cell_ended(planned.title, record)


def run_in_processes(
    plan: Sequence[Planned],
    executor: Executor,
    *,
    threads: int | None,
    data_dir: Path | None,
    download: bool,
    overwrite: bool,
    save_every: float,
    outcomes: list[Outcome],
) -> None:
    """As `run_cells`, by an executor; no error of a cell stops the others.

    threads: of each cell, None for what the executor has for it; a begun cell keeps those that it
    began with.
    """
    waiting = left_of(plan, outcomes, overwrite=overwrite)
    check_data(_kept(outcomes), data_dir, download=download)
    if not waiting:
        return
    check_strategies([planned.cell for planned in waiting], Scenarios(data_dir, download))
    if overwrite:
        for planned in waiting:
            discard(planned.folder)
    jobs = [
        Job(
            planned.cell,
            planned.folder,
            threads or begun_threads(planned.folder),
            data_dir,
            download,
            save_every=save_every,
        )
        for planned in waiting
    ]
    titles = {planned.folder: planned.title for planned in plan}
    with GridDisplay(titles, len(outcomes)) as display:
        try:
            executor.run(jobs, display.hear)
        finally:
            for planned in waiting:
                error = display.errors.get(planned.folder)
                record = None if error else finished_record(planned.cell, planned.folder)
                if record or error:
                    outcomes.append(Outcome(planned.cell, planned.folder, record, error=error))


def _kept(outcomes: Sequence[Outcome]) -> list[tuple[Cell, Path, Mapping[str, Any]]]:
    return [(each.cell, each.folder, each.record.data) for each in outcomes if each.record]


def check_strategies(cells: Sequence[Cell], scenarios: Scenarios) -> None:
    """Build the learner of each configuration, for one seed: raises FireflyError where it fails.

    A strategy's own settings are checked by building it: now, not hours later. So are the data.
    """
    from firefly_cl.continual import STRATEGIES

    checked = set()
    for cell in cells:
        cell = replace(cell, device="cpu")  # that of the cell may be on another machine
        configuration = replace(cell, seed=0).digest()
        if configuration not in checked:
            checked.add(configuration)
            STRATEGIES.get(cell.strategy)(setup_of(cell, scenarios.of(cell), silent))


class Scenarios:
    """Builds the scenario of a cell, keeping the last: strategies of one seed share it."""

    def __init__(self, data_dir: Path | None, download: bool) -> None:
        self._data_dir = data_dir
        self._download = download
        self._key: tuple[object, ...] | None = None
        self._scenario: Scenario | None = None

    @staticmethod
    def key(cell: Cell) -> tuple[object, ...]:
        """What the scenario of a cell depends on."""
        return (
            cell.scenario,
            cell.seed,
            cell.tasks,
            cell.split_into,
            cell.validation,
            cell.evaluate_on,
            cell.image_size,
        )

    def of(self, cell: Cell) -> Scenario:
        """The scenario of a cell; raises FireflyError where its data are missing or damaged."""
        from firefly_cl.scenarios import SCENARIOS, ScenarioOptions

        key = self.key(cell)
        if self._scenario is None or key != self._key:
            options = ScenarioOptions(
                data_dir=self._data_dir,
                download=self._download,
                seed=cell.seed,
                n_tasks=cell.split_into,
                first_tasks=cell.tasks,
                validation=cell.validation,
                image_size=cell.image_size,
            )
            scenario = SCENARIOS.get(cell.scenario)(options)
            if cell.evaluate_on == "validation":
                tasks = tuple(replace(task, test=task.validation) for task in scenario.tasks)
                scenario = replace(scenario, tasks=tasks)
            self._scenario, self._key = scenario, key
        return self._scenario
