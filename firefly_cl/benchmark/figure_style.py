"""What the report's figures have in common: colours, sizes, lettering, ticks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from firefly_cl.benchmark.report import ScenarioSummary

INK, MUTED, GRID, PANEL = "#1b1f24", "#5b6672", "#dde2e7", "#ffffff"
# Okabe and Ito 2008, without the yellow that white paper swallows.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5c3e", "#6b7280")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")


@dataclass(frozen=True)
class Size:
    """Width of a figure in inches, and how many panels stand beside each other."""

    name: str
    width: float
    panels: int


WIDE = Size("wide", 7.6, 4)
NARROW = Size("narrow", 3.55, 2)

STYLE: Any = {
    "font.size": 8.5,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": GRID,
    "axes.facecolor": PANEL,
    "figure.facecolor": PANEL,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "legend.frameon": False,
    "svg.fonttype": "none",
}

Draw = Callable[[ScenarioSummary, Size], "Figure | None"]


def task_ticks(axis: Any, tasks: int, offset: float) -> None:
    """Number tasks from 1, few enough that numbers never touch."""
    step = 1 if tasks <= 10 else 5 if tasks <= 30 else 10
    numbers = [1, *range(step, tasks + 1, step)] if step > 1 else list(range(1, tasks + 1))
    axis.set_ticks([number - 1 + offset for number in numbers], [str(n) for n in numbers])


def short(name: str, longest: int) -> str:
    """A name with its middle left out where it is longer than so many characters."""
    if len(name) <= longest:
        return name
    tail = (longest - 1) // 2
    return f"{name[: longest - 1 - tail]}…{name[-tail:]}"
