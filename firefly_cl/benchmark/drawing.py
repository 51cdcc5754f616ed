"""Drawings of a network by owner: widths of its spaces, and which units the newest task reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.collections import PathCollection
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from firefly_cl.benchmark.figure_style import MUTED, PANEL, STYLE, short
from firefly_cl.benchmark.owner_widths import owner_bar, owner_colours, stack

if TYPE_CHECKING:
    from firefly_cl.network.readings import Reading

WIDTH = 7.6
"""Inches."""

_LEAST = 0.04
"""Height of a block that stands for no units of a space, in parts of the widest space."""

_BLOCK = 0.34
"""Width of a block; columns are 1 apart."""


def draw_widths(widths: Mapping[str, Sequence[int]], tasks: int) -> Figure:
    """A bar for each space, of its units by owner; colours for so many tasks."""
    colours = owner_colours(tasks)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.21 * len(widths) + 1.2), layout="constrained", dpi=110)
        axes = figure.subplots()
        stack(axes, list(widths.items()), colours)
        axes.set_yticks(range(len(widths)), [short(name, 28) for name in widths])
        axes.set_ylim(len(widths) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title("units", loc="left", color=MUTED, fontsize=8.5)
        owner_bar(figure, [axes], colours, tasks)
    return figure


@dataclass(frozen=True)
class Block:
    """Units of one owner in one column: from `bottom` up to `top`, in units."""

    column: int
    bottom: float
    top: float

    @property
    def middle(self) -> float:
        """Where lines end."""
        return (self.bottom + self.top) / 2


def blocks(
    widths: Mapping[str, Sequence[int]], readings: Sequence[Reading]
) -> tuple[list[str], dict[tuple[str, int], Block]]:
    """Names of the columns from left to right, and the block of each column and owner.

    What is read and has no widths (input channels) stands on the left, what reads and has none
    (heads) on the right, both in a height of their own. Owners are stacked upwards, oldest first;
    each column is centred.
    """
    inputs = dict.fromkeys(r.source for r in readings if r.source not in widths)
    heads = dict.fromkeys(r.target for r in readings if r.target not in widths)
    readers = 1 + max((r.reader for r in readings), default=-1)
    highest = max((sum(units) for units in widths.values()), default=1)
    least = _LEAST * highest
    columns: dict[str, dict[int, float]] = {name: {-1: least} for name in inputs}
    columns |= {name: dict(enumerate(units)) for name, units in widths.items()}
    columns |= {name: dict.fromkeys(range(readers), least) for name in heads}
    found = {}
    for number, (name, of_owners) in enumerate(columns.items()):
        bottom = -sum(of_owners.values()) / 2
        for owner, units in of_owners.items():
            if units:
                found[name, owner] = Block(number, bottom, bottom + units)
            bottom += units
    return list(columns), found


def draw_network(
    widths: Mapping[str, Sequence[int]], readings: Sequence[Reading], tasks: int
) -> Figure:
    """Units of each space by owner, and a line to the newest task's from each owner that it reads.

    A line has the colour of the owner that is read, and is the thicker the more of its units
    are; what goes back to an earlier column is a residual branch that ends there.
    """
    names, found = blocks(widths, readings)
    newest = max((r.reader for r in readings), default=0)
    colours = owner_colours(tasks)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained", dpi=110)
        axes = figure.subplots()
        _lines(axes, [r for r in readings if r.reader == newest], found, colours)
        for (_, owner), block in found.items():
            axes.add_patch(
                Rectangle(
                    (block.column - _BLOCK / 2, block.bottom),
                    _BLOCK,
                    block.top - block.bottom,
                    facecolor=_colour(owner, colours),
                    edgecolor=PANEL,
                    linewidth=0.5,
                    zorder=3,
                )
            )
        highest = max((block.top for block in found.values()), default=1.0)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylim(-1.06 * highest, 1.06 * highest)
        labels = ["input" if (name, -1) in found else short(name, 22) for name in names]
        axes.set_xticks(range(len(names)), labels, fontsize=6.5)
        axes.tick_params(axis="x", rotation=90)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_title(
            f"units by owner after task {newest + 1}; lines: what task {newest + 1} reads of whom",
            loc="left",
            color=MUTED,
            fontsize=8.5,
        )
        owner_bar(figure, [axes], colours, tasks)
    return figure


def _lines(
    axes: mpl.axes.Axes,
    readings: Sequence[Reading],
    found: Mapping[tuple[str, int], Block],
    colours: Colormap,
) -> None:
    most = max((r.units for r in readings), default=1)
    paths, edges, thick = [], [], []
    for r in readings:
        start, end = found.get((r.source, r.owner)), found.get((r.target, r.reader))
        if start is None or end is None or start.column == end.column:
            continue
        side = _BLOCK / 2 if end.column > start.column else -_BLOCK / 2
        x, last = start.column + side, end.column - side
        reach = (last - x) / 2
        points = [(x, start.middle), (x + reach, start.middle)]
        points += [(last - reach, end.middle), (last, end.middle)]
        paths.append(Path(points, [Path.MOVETO, *[Path.CURVE4] * 3]))
        edges.append(_colour(r.owner, colours))
        thick.append(0.5 + 4.5 * r.units / most)
    axes.add_collection(
        PathCollection(paths, facecolors="none", edgecolors=edges, linewidths=thick, alpha=0.55),
        autolim=False,
    )


def _colour(owner: int, colours: Colormap) -> tuple[float, float, float, float]:
    """An owner's; input channels have none and are grey."""
    return colours(owner) if owner >= 0 else mpl.colors.to_rgba(MUTED)
