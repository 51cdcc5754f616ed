"""TensorBoard events of a cell: accuracy, size and drawings after tasks, growth as it happens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from firefly_cl.benchmark.records import plain
from firefly_cl.errors import FileError

if TYPE_CHECKING:
    from torch import Tensor

    from firefly_cl.network.readings import Reading


class Events:
    """Writes one step per task, and one per growth event; use as a context manager.

    `growth_written`: how many growth events the folder holds already. It is an `Observer`, which
    may be shown the others as they happen; those that it was not shown are written after the task.
    """

    def __init__(self, folder: Path, growth_written: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        try:
            self._writer = SummaryWriter(str(folder))
        except OSError as error:
            raise self._unwritable(error) from error
        self._earlier = growth_written
        self._written: set[int] = set()

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._writer.close()
        except OSError as full:
            if error is None:  # else that is what should be told
                raise self._unwritable(full) from full

    def edited(
        self,
        number: int,
        event: Mapping[str, object],
        scores: Mapping[str, Sequence[float]],
        gates: Sequence[Tensor],
    ) -> None:
        """Write a growth step, a selection or a pruning: what is told of it, and histograms.

        Scores by kind, over the steps of growth; gates over the epochs of their search. Raises
        FileError where they cannot be written.
        """
        number += self._earlier
        try:
            self._text(number, event)
            for kind, gains in scores.items():
                self._histogram(f"scores/{kind}", np.asarray(gains), number)
            what = "prune" if "removed" in event else "select"
            for epoch, values in enumerate(gates, 1):
                tag = f"gates/{number:03d} {what} in task {event['task']}"
                self._histogram(tag, values.numpy(), epoch)
            self._writer.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _histogram(self, tag: str, values: np.ndarray[Any, Any], step: int) -> None:
        finite = values[np.isfinite(values)]
        if len(finite):
            self._writer.add_histogram(tag, finite, step)

    def _text(self, number: int, event: Mapping[str, object]) -> None:
        self._writer.add_text("growth", json.dumps(plain(event)), number)
        self._written.add(number)

    def task(
        self,
        task: int,
        accuracy: Sequence[float | None],
        names: Sequence[str],
        floats: int,
        widths: Mapping[str, Sequence[int]],
        growth: Sequence[Mapping[str, Any]],
        readings: Sequence[Reading] = (),
    ) -> None:
        """Write the state after `task`; `growth` holds every growth event so far.

        readings: of the network, where it can be drawn. Raises FileError where they cannot be
        written.
        """
        try:
            self._task(task, accuracy, names, floats, widths, growth, readings)
        except OSError as error:
            raise self._unwritable(error) from error

    def _task(
        self,
        task: int,
        accuracy: Sequence[float | None],
        names: Sequence[str],
        floats: int,
        widths: Mapping[str, Sequence[int]],
        growth: Sequence[Mapping[str, Any]],
        readings: Sequence[Reading] = (),
    ) -> None:
        seen = [value for value in accuracy if value is not None]
        if seen:
            self._writer.add_scalar("accuracy/average", sum(seen) / len(seen), task)
        for j, value in enumerate(accuracy):
            if value is not None:
                self._writer.add_scalar(f"accuracy/{j:02d} {names[j]}", value, task)
        self._writer.add_scalar("size/floats", floats, task)
        self._writer.add_scalar("size/units", sum(sum(units) for units in widths.values()), task)
        for name, units in widths.items():
            self._writer.add_scalar(f"units/{name}", sum(units), task)
        for number in range(self._earlier, len(growth)):
            if number not in self._written:
                self._text(number, growth[number])
        if readings or any(len(units) > 1 for units in widths.values()):
            from firefly_cl.benchmark.drawing import draw_network, draw_widths  # loads matplotlib

            self._writer.add_figure("network/widths", draw_widths(widths, len(names)), task)
            if readings:
                drawn = draw_network(widths, readings, len(names))
                self._writer.add_figure("network/drawing", drawn, task)
        self._writer.flush()

    def _unwritable(self, error: OSError) -> FileError:
        return FileError(
            f"cannot write events to {self._folder} ({error.strerror or error}): "
            "free space or choose another --out"
        )
