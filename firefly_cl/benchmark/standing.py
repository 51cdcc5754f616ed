"""Where the cells of a grid stand: the folder of each, and how far its run has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firefly_cl.benchmark.configuration import digest
from firefly_cl.benchmark.failures import read_failure
from firefly_cl.benchmark.folders import begun_threads, finished_record, newest_record
from firefly_cl.benchmark.grid import GridCell
from firefly_cl.benchmark.records import Record
from firefly_cl.errors import FileError


@dataclass(frozen=True)
class Standing:
    """A cell, its folder, and what is kept there.

    `record`: this very cell's, None if there is none yet. `error`: what ended its last run.
    `obstacle`: why the folder cannot be used, such as a run of another configuration.
    """

    grid_cell: GridCell
    folder: Path
    record: Record | None = None
    error: str | None = None
    obstacle: str | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.record is not None and self.record.finished

    @property
    def threads(self) -> int | None:
        """Threads that a begun run must go on with to come to the same bits; None if new."""
        return None if self.record is None else begun_threads(self.folder)

    @property
    def state(self) -> str:
        """One of finished, failed, blocked, begun and new."""
        if self.finished:
            return "finished"
        if self.error is not None:
            return "failed"
        if self.obstacle is not None:
            return "blocked"
        return "new" if self.threads is None else "begun"

    def __str__(self) -> str:
        """The state, with what it is due to."""
        done = ""
        if self.record is not None and not self.finished and self.record.accuracy:
            done = f"after task {len(self.record.accuracy)}/{len(self.record.tasks)}"
        parts = {
            "failed": f"{done}: {self.error}" if done else f": {self.error}",
            "blocked": f": {self.obstacle}",
            "begun": done,
        }
        return f"{self.state} {parts.get(self.state, '')}".replace(" :", ":").rstrip()


def standings(cells: Sequence[GridCell], out: Path) -> list[Standing]:
    """Where each cell stands below `out`; reads, and changes nothing.

    A cell's folder is OUT/<scenario>/<strategy>-seed<k>, and where the grid has several cells
    of that name OUT/<scenario>/<strategy>-seed<k>-<digest>; a run that either holds already
    stays where it is, whatever joins or leaves the grid.
    """
    named = Counter(found.cell.folder(out) for found in cells)
    return [_standing(found, out, alone=named[found.cell.folder(out)] == 1) for found in cells]


def _standing(found: GridCell, out: Path, alone: bool) -> Standing:
    cell = found.cell
    short = cell.folder(out)
    long = short.with_name(f"{short.name}-{cell.digest()}")
    for folder in (short, long):
        record = _record(folder)
        if record is not None and digest(record.configuration) == cell.digest():
            return Standing(
                found, folder, record, None if record.finished else _error(found, folder)
            )
    folder = short if alone else long
    obstacle = None
    try:
        finished_record(cell, folder)
    except FileError as error:
        obstacle = str(error)
    return Standing(found, folder, None, _error(found, folder), obstacle)


def _record(folder: Path) -> Record | None:
    try:
        return newest_record(folder)
    except FileError:
        return None


def _error(found: GridCell, folder: Path) -> str | None:
    failure = read_failure(folder)
    if failure is None or digest(failure.configuration) != found.cell.digest():
        return None
    return failure.error
