"""Runs the cells of a plan one after another, skipping those that are already recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from firefly_cl.benchmark.cell import run_cell, setup_of
from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.display import Display
from firefly_cl.benchmark.folders import check_writable, finished_record
from firefly_cl.benchmark.records import Record
from firefly_cl.continual.learner import silent
from firefly_cl.errors import DivergenceError

if TYPE_CHECKING:
    from firefly_cl.scenarios import Scenario


@dataclass(frozen=True)
class Outcome:
    """What became of one cell: a record, or the error that ended it."""

    cell: Cell
    folder: Path
    record: Record | None
    skipped: bool = False
    error: str | None = None


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    *,
    threads: int,
    data_dir: Path | None,
    download: bool,
    overwrite: bool,
    save_every: float,
    display: Display,
    outcomes: list[Outcome],
) -> None:
    """Run each cell in its folder below `out`, adding to `outcomes` as they end.

    Every folder is checked before the first cell starts. A cell that diverges does not stop the
    others; any other error does. Raises FireflyError.
    """
    waiting: list[tuple[Cell, Path]] = []
    earlier = len(outcomes)
    for cell in cells:
        folder = cell.folder(out)
        check_writable(folder)
        record = None if overwrite else finished_record(cell, folder)
        if record is None:
            waiting.append((cell, folder))
        else:
            outcomes.append(Outcome(cell, folder, record, skipped=True))
    for outcome in outcomes[earlier:]:
        display.skipped(outcome.cell, outcome.folder)
    if not waiting:
        return

    from firefly_cl.continual import STRATEGIES

    builders = {cell.strategy: STRATEGIES.get(cell.strategy) for cell, _ in waiting}
    scenarios = Scenarios(data_dir, download)
    check_strategies([cell for cell, _ in waiting], scenarios)
    for number, (cell, folder) in enumerate(waiting):
        display.cell_started(cell, number, len(waiting))
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
            display.cell_failed(cell, str(error))
        else:
            outcomes.append(Outcome(cell, folder, record))
            display.cell_ended(cell, record)


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

    def of(self, cell: Cell) -> Scenario:
        """The scenario of a cell; raises FireflyError where its data are missing or damaged."""
        from firefly_cl.scenarios import SCENARIOS, ScenarioOptions

        key = (
            cell.scenario,
            cell.seed,
            cell.tasks,
            cell.split_into,
            cell.validation,
            cell.evaluate_on,
        )
        if self._scenario is None or key != self._key:
            options = ScenarioOptions(
                data_dir=self._data_dir,
                download=self._download,
                seed=cell.seed,
                n_tasks=cell.split_into,
                first_tasks=cell.tasks,
                validation=cell.validation,
            )
            scenario = SCENARIOS.get(cell.scenario)(options)
            if cell.evaluate_on == "validation":
                tasks = tuple(replace(task, test=task.validation) for task in scenario.tasks)
                scenario = replace(scenario, tasks=tasks)
            self._scenario, self._key = scenario, key
        return self._scenario
