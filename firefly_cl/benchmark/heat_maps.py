"""Figures of tasks against tasks: accuracy, reuse, and what older tasks' features are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from firefly_cl.benchmark.figure_style import PANEL, SERIES, STYLE, Size, short, task_ticks
from firefly_cl.benchmark.report import ScenarioSummary

_NAN = float("nan")


def accuracy_matrices(group: ScenarioSummary, size: Size) -> Figure | None:
    """Accuracy of every task (across) after every task (down), one panel for each strategy."""
    if group.grows or group.prunes:
        return None
    matrices = {
        summary.label: [[_NAN if v is None else 100 * v for v in row] for row in summary.matrix()]
        for summary in group.summaries
    }
    known = [v for matrix in matrices.values() for row in matrix for v in row if v == v]
    low = min(max(0, int(min(known) / 10) * 10), 90)
    maps = _HeatMaps("after task", "accuracy of task", "test accuracy (%)", low, 100.0)
    return _heat_maps(matrices, len(group.tasks()), size, maps)


def reuse(group: ScenarioSummary, size: Size) -> Figure | None:
    """Older units that each task reads (down) of each owner (across), of the first seed."""
    matrices = {
        summary.label: [
            [float(units) if owner < task else _NAN for owner, units in enumerate(row)]
            for task, row in enumerate(summary.records[0].reuse)
        ]
        for summary in group.summaries
        if any(any(row) for row in summary.records[0].reuse)
    }
    if not matrices:
        return None
    most = max(v for matrix in matrices.values() for row in matrix for v in row if v == v)
    maps = _HeatMaps("task", "owner task", "older units that the task reads", 0.0, most)
    return _heat_maps(matrices, len(group.tasks()), size, maps)


def nearest_tasks(group: ScenarioSummary, size: Size) -> Figure | None:
    """What older tasks' features tell of each task's classes, of the first seed; None unasked."""
    tasks = len(group.tasks())
    matrices, chosen = {}, {}
    for summary in group.summaries:
        events = [e for e in summary.records[0].growth_events if "probe_accuracies" in e]
        if events:
            rows = [[_NAN] * tasks for _ in range(tasks)]
            for event in events:
                found = [100 * accuracy for accuracy in event["probe_accuracies"]]
                rows[event["task"]][: len(found)] = found
            matrices[summary.label] = rows
            chosen[summary.label] = [(event["task"], event["source"]) for event in events]
    if not matrices:
        return None
    known = [v for matrix in matrices.values() for row in matrix for v in row if v == v]
    label = "accuracy of a probe on its features (%)"
    maps = _HeatMaps(
        "task", "older task", label, math.floor(min(known)), math.floor(max(known)) + 1
    )
    return _heat_maps(matrices, tasks, size, maps, chosen)


@dataclass(frozen=True)
class _HeatMaps:
    """What stands beside heat maps of tasks against tasks, and the ends of their colours."""

    down: str
    across: str
    values: str
    low: float
    high: float


def _heat_maps(
    matrices: Mapping[str, Sequence[Sequence[float]]],
    tasks: int,
    size: Size,
    maps: _HeatMaps,
    framed: Mapping[str, Sequence[tuple[int, int]]] | None = None,
) -> Figure:
    """One square panel for each label, task against task; NaN is left blank.

    `framed`: (down, across) of tiles with a frame.
    """
    rows = -(-len(matrices) // size.panels)
    columns = -(-len(matrices) // rows)
    side = min(size.width / columns, 2.4)
    height = rows * (side + 0.2) + 0.7 if columns > 2 else rows * (side + 0.05) + 0.65
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(size.width, height), layout="compressed")
        grid = figure.subplots(rows, columns, squeeze=False)
        panels = [axes for row in grid for axes in row]
        mesh = None
        for number, (axes, label) in enumerate(zip(panels, matrices, strict=False)):
            values = matrices[label]
            mesh = axes.pcolormesh(
                values,
                cmap="viridis",
                vmin=maps.low,
                vmax=maps.high,
                edgecolors=PANEL,
                linewidth=0.6,
            )
            if tasks <= 6:
                _annotate(axes, values, maps.low, maps.high)
            for down, across in (framed or {}).get(label, ()):
                frame = Rectangle((across, down), 1, 1, fill=False, linewidth=1.4)
                frame.set_edgecolor(SERIES[1])
                axes.add_patch(frame)
            task_ticks(axes.xaxis, tasks, offset=0.5)
            task_ticks(axes.yaxis, tasks, offset=0.5)
            axes.invert_yaxis()
            axes.set_aspect("equal")
            axes.set_title(short(label, 20 if columns > 2 else 26), loc="left")
            axes.spines[:].set_visible(False)
            if number % columns == 0:
                axes.set_ylabel(maps.down)
            if number + columns >= len(matrices):
                axes.set_xlabel(maps.across)
        for axes in panels[len(matrices) :]:
            axes.set_visible(False)
        if mesh is not None:
            bar = figure.colorbar(
                mesh, ax=panels, location="bottom", fraction=0.04, aspect=45, pad=0.03
            )
            bar.outline.set_visible(False)
            bar.set_label(maps.values)
            bar.locator = MaxNLocator(8 if columns > 2 else 5, integer=True)
            bar.update_ticks()
    return figure


def _annotate(axes: Axes, values: Sequence[Sequence[float]], low: float, high: float) -> None:
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value == value:  # not a task still to come
                dark = value < low + 0.55 * (high - low)
                axes.text(
                    j + 0.5,
                    i + 0.5,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="#fffffe" if dark else "#111110",  # on a tile, the same in any theme
                )
