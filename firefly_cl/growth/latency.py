"""Measured latency of layers by width, as a currency of growth: a table of timings."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from firefly_cl.errors import ConfigurationError, FileError
from firefly_cl.network import FireflyNet
from firefly_cl.network.files import write_atomically
from firefly_cl.network.graph import Node

WIDTHS = (1, 8, 16, 32, 64, 128, 256)
"""Widths that are timed; between them timings are interpolated, beyond them extrapolated."""

SCHEMA = 1
"""Version of the file; a larger one is refused."""

_WARMUP, _REPEATS = 2, 7


@dataclass(frozen=True)
class LayerShape:
    """What a layer's time depends on besides its widths.

    size: pixels of its input (height x width). per_unit: (rows, columns) of one unit in a layer
    that works unit by unit, else None. The other fields are empty for a linear layer.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: str | tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    size: int = 1
    per_unit: tuple[int, int] | None = None

    @staticmethod
    def of(node: Node, reads: Node) -> LayerShape:
        """That of a conv, linear or head node that reads another node."""
        found, per_unit = node.attributes, None
        if found["per_unit"]:
            per_unit = (node.layout[0].repeat, reads.layout[0].repeat)
        padding = found.get("padding", ())
        return LayerShape(
            tuple(found.get("kernel", ())),
            tuple(found.get("stride", ())),
            padding if isinstance(padding, str) else tuple(padding),
            tuple(found.get("dilation", ())),
            reads.size,
            per_unit,
        )

    def runner(self, rows: int, columns: int, dtype: torch.dtype) -> Callable[[], object]:
        """The layer at one width, on one image."""
        if not self.kernel:
            x, weight = torch.ones(1, columns, dtype=dtype), torch.ones(rows, columns, dtype=dtype)
            return lambda: F.linear(x, weight)
        height = max(h for h in range(1, math.isqrt(self.size) + 1) if self.size % h == 0)
        groups, inside = 1, columns
        if self.per_unit is not None:
            groups, inside = columns // self.per_unit[1], self.per_unit[1]
        x = torch.ones(1, columns, height, self.size // height, dtype=dtype)
        weight = torch.ones(rows, inside, *self.kernel, dtype=dtype)
        padding: Any = self.padding
        return lambda: F.conv2d(x, weight, None, self.stride, padding, self.dilation, groups)


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one layer shape on one image, at every pair of widths.

    rows, columns: ascending widths; a layer that works unit by unit has units as rows, and one
    column. milliseconds: (rows, columns), nowhere falling.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    milliseconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        """Raise ConfigurationError for numbers that are no timings."""
        for widths in (self.rows, self.columns):
            if not widths or list(widths) != sorted(set(widths)) or widths[0] < 1:
                raise ConfigurationError(f"widths {widths} of timings must ascend from 1 or more")
        if len(self.rows) < 2:
            raise ConfigurationError("timings need two widths or more")
        values = self.milliseconds
        if [len(v) for v in values] != [len(self.columns)] * len(self.rows):
            raise ConfigurationError("timings must be one number for each pair of widths")
        if not all(0 < v < math.inf for row in values for v in row):
            raise ConfigurationError("timings must be above 0 milliseconds")

    @staticmethod
    def rising(
        rows: Sequence[int], columns: Sequence[int], milliseconds: Sequence[Sequence[float]]
    ) -> Timings:
        """Measured times, each at least that of a narrower layer: noise makes none cheaper."""
        whole: list[list[float]] = []
        for i, row in enumerate(milliseconds):
            above = whole[i - 1] if i else [0.0] * len(row)
            raised = [max(value, least) for value, least in zip(row, above, strict=True)]
            whole.append(list(itertools.accumulate(raised, max)))
        return Timings(tuple(rows), tuple(columns), tuple(map(tuple, whole)))

    def at(self, rows: int, columns: int) -> float:
        """Milliseconds at any widths: bilinear, and on along the last cell beyond the widest."""
        if not rows or not columns:
            return 0.0
        i, along = _cell(self.rows, rows)
        low, high = self.milliseconds[i], self.milliseconds[i + 1]
        if len(self.columns) == 1:
            return low[0] + along * (high[0] - low[0])
        j, across = _cell(self.columns, columns)
        bend = high[j + 1] - high[j] - low[j + 1] + low[j]
        if along > 1 or across > 1:  # where a negative one would make wider layers faster
            bend = max(bend, 0.0)
        sides = along * (high[j] - low[j]) + across * (low[j + 1] - low[j])
        return low[j] + sides + along * across * bend


def _cell(widths: Sequence[int], width: int) -> tuple[int, float]:
    """The interval of `widths` for a width, and how far along it: 0 to 1, more beyond the last."""
    i = min(max(bisect.bisect_right(widths, width) - 1, 0), len(widths) - 2)
    return i, max(width - widths[i], 0) / (widths[i + 1] - widths[i])


def measure(shape: LayerShape, dtype: torch.dtype) -> Timings:
    """Time a layer at all pairs of WIDTHS, on one image and the CPU, with torch's threads.

    Of the repeats, each of which takes every width in turn, the fastest counts: what else the
    machine does only adds. Raises ConfigurationError for a layer that cannot run alone.
    """
    columns: tuple[int, ...] = WIDTHS
    per_row, per_column = 1, 1
    if shape.per_unit is not None:
        columns, (per_row, per_column) = (1,), shape.per_unit
    runs = {}
    for i, rows in enumerate(WIDTHS):
        for j, width in enumerate(columns):
            read = rows * per_column if shape.per_unit is not None else width
            runs[i, j] = shape.runner(rows * per_row, read, dtype)
    best = dict.fromkeys(runs, math.inf)
    try:
        with torch.no_grad():
            for repeat in range(_WARMUP + _REPEATS):
                for at, run in runs.items():
                    start = time.perf_counter()
                    run()
                    if repeat >= _WARMUP:
                        best[at] = min(best[at], time.perf_counter() - start)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"a layer of {shape} cannot be timed ({reason}): count growth in flops instead"
        ) from error
    times = [[1000 * best[i, j] for j in range(len(columns))] for i in range(len(WIDTHS))]
    return Timings.rising(WIDTHS, columns, times)


@dataclass
class LatencyTable:
    """Timings by layer shape, number of threads and dtype, each measured once.

    path: of a JSON file that holds them and takes up what is measured (None: memory alone).
    What is there is never measured again, so that the same table gives the same growth.
    """

    path: Path | None = None
    timings: dict[tuple[LayerShape, int, str], Timings] = field(default_factory=dict)

    @staticmethod
    def load(path: Path) -> LatencyTable:
        """The table in a file, empty if there is none yet; raises FileError."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told["schema"] > SCHEMA:
                raise FileError(
                    f"{path} has schema {told['schema']}, this version reads up to {SCHEMA}: "
                    "update firefly_cl"
                )
            found = {}
            for entry in told["timings"]:
                key = (_shape(entry["shape"]), int(entry["threads"]), str(entry["dtype"]))
                found[key] = Timings(
                    tuple(entry["rows"]),
                    tuple(entry["columns"]),
                    tuple(map(tuple, entry["milliseconds"])),
                )
        except FileNotFoundError:
            return LatencyTable(path)
        except (OSError, ValueError, KeyError, TypeError, ConfigurationError) as error:
            raise FileError(
                f"{path} holds no table of timings ({error!r}): name another file"
            ) from None
        return LatencyTable(path, found)

    def to_json(self) -> bytes:
        """What `load` reads."""
        entries = [
            {"shape": asdict(shape), "threads": threads, "dtype": dtype, **asdict(timings)}
            for (shape, threads, dtype), timings in self.timings.items()
        ]
        told = {"schema": SCHEMA, "unit": "milliseconds of one image", "timings": entries}
        return (json.dumps(told, indent=1) + "\n").encode()

    def digest(self) -> str:
        """SHA-256 of what the file holds."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def of(self, shape: LayerShape, dtype: torch.dtype) -> Timings:
        """Timings of a layer with torch's present threads, measured if they are not there."""
        key = (shape, torch.get_num_threads(), str(dtype).removeprefix("torch."))
        if key not in self.timings:
            self.timings[key] = measure(shape, dtype)
            if self.path is not None:
                write_atomically(self.path, self.to_json())
        return self.timings[key]

    def milliseconds(
        self, net: FireflyNet, node: Node, reads: Node, rows: int, columns: int
    ) -> float:
        """One image through `rows` rows over `columns` columns of a layer that reads a node."""
        shape = LayerShape.of(node, reads)
        if shape.per_unit is not None:
            rows //= shape.per_unit[0]
        return self.of(shape, next(net.parameters()).dtype).at(rows, columns)


def _shape(told: dict[str, Any]) -> LayerShape:
    fields: dict[str, Any] = {}
    for name, value in told.items():
        fields[name] = tuple(value) if isinstance(value, list) else value
    return LayerShape(**fields)
