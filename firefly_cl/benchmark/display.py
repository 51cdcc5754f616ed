"""What a user sees while cells run: a live line on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from firefly_cl.benchmark.quantities import count, duration, percent

if TYPE_CHECKING:
    from firefly_cl.benchmark.records import Record
    from firefly_cl.continual.learner import Progress

PLAIN_INTERVAL = 30.0
"""Seconds between lines about epochs where there is no terminal."""


class Display:
    """Follows cells; a context manager, so that the terminal is restored whatever happens."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._cell = ""
        self._number, self._cells = 0, 1
        self._began = self._cell_began = time.monotonic()
        self._fraction = 0.0
        self._resumed_at = self._spared = 0.0  # share of this cell, and cells, done in other runs
        self._last: Progress | None = None
        self._last_line = self._began
        self._live = (
            Live(
                console=self.console,
                refresh_per_second=4,
                transient=True,
                get_renderable=self._draw,
            )
            if self.console.is_terminal
            else None
        )

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str, style: str = "") -> None:
        """Print one lasting line."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def skipped(self, title: str, folder: Path) -> None:
        """A cell was found finished."""
        self.say(f"{title}: already finished, kept ({folder})", "dim")

    def cell_started(self, title: str, number: int, cells: int) -> None:
        """Cell `number` of `cells` begins."""
        self._cell, self._number, self._cells = title, number, cells
        self._cell_began = self._last_line = time.monotonic()
        self._fraction, self._resumed_at, self._last = 0.0, 0.0, None
        if self._live is None:
            self.say(f"[{number + 1}/{cells}] {self._cell}: started")

    def cell_resumed(self, record: Record, where: str) -> None:
        """The cell goes on where an earlier run was interrupted."""
        done, tasks = len(record.accuracy), len(record.tasks)
        self._fraction = self._resumed_at = done / tasks
        self._spared += self._resumed_at
        self._line(f"continues {where}")

    def cell_discarded(self, record: Record, why: str) -> None:
        """The cell cannot go on where an earlier run was interrupted."""
        done, tasks = len(record.accuracy), len(record.tasks)
        self._line(f"starts again, without the {done}/{tasks} tasks done before ({why})")

    def progress(self, progress: Progress) -> None:
        """A learner's news."""
        self._last = progress
        within = min(progress.epoch / progress.epochs, 1.0) if progress.epochs else 0.0
        self._fraction = max(self._fraction, (progress.task + within) / max(progress.tasks, 1))
        if self._live is None and time.monotonic() - self._last_line >= PLAIN_INTERVAL:
            self._line(f"{news_of(progress)}, {self._time_left()}")

    def task_ended(self, record: Record) -> None:
        """A task was learned and tested."""
        done, tasks = len(record.accuracy), len(record.tasks)
        self._fraction = max(self._fraction, done / tasks)
        if self._live is None:
            self._line(
                f"task {done}/{tasks} ({record.tasks[done - 1]}) done, {accuracy_so_far(record)}, "
                f"{count(record.parameters)} floats, {self._time_left()}"
            )

    def cell_ended(self, title: str, record: Record) -> None:
        """A cell was finished."""
        took = duration(time.monotonic() - self._cell_began)
        self.say(
            f"{title}: accuracy {percent(record.average_accuracy)} %, "
            f"forgetting {percent(record.average_forgetting)}, "
            f"{count(record.parameters)} floats, {took}"
        )

    def cell_failed(self, title: str) -> None:
        """A cell diverged; the others go on, and the command says why when they are done."""
        self.say(f"{title}: failed", "red")

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.say(f"[{self._number + 1}/{self._cells}] {self._cell}: {text}")

    def _time_left(self) -> str:
        spent = time.monotonic() - self._cell_began
        if self._fraction <= self._resumed_at:
            return "time left unknown"
        this = spent / (self._fraction - self._resumed_at) * (1 - self._fraction)
        a_cell = (time.monotonic() - self._began) / (self._number + self._fraction - self._spared)
        return f"{duration(this + a_cell * (self._cells - self._number - 1))} left"

    def _draw(self) -> Group:
        if not self._cell:
            return Group(Text("preparing", style="dim"))
        head = Text.assemble(
            (self._cell, "bold"),
            ("  ", ""),
            (news_of(self._last) if self._last else "loading data and model", ""),
        )
        head.no_wrap, head.overflow = True, "ellipsis"
        total = (self._number + self._fraction) / self._cells
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=1.0, completed=total, width=28),
            f"{100 * total:3.0f} %",
            f"run {self._number + 1} of {self._cells}",
            self._time_left(),
        )
        return Group(head, bar)


def news_of(progress: Progress) -> str:
    """A learner's news in a few words."""
    parts = [f"task {progress.task + 1}/{progress.tasks}", progress.phase]
    if progress.epochs:
        parts.append(f"epoch {progress.epoch}/{progress.epochs}")
    if progress.accuracy is not None:
        parts.append(f"acc {percent(progress.accuracy)} %")
    elif progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.units is not None:
        parts.append(f"{progress.units} units")
    return "  ".join(parts)


def accuracy_so_far(record: Record) -> str:
    """The average accuracy in words; joint training knows none before its last task."""
    if record.average_accuracy is None:
        return "no accuracy yet"
    return f"average accuracy {percent(record.average_accuracy)} %"
