"""The report's figures, drawn from summaries: wide for pages and files, narrow for phones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from firefly_cl.benchmark.quantities import count
from firefly_cl.benchmark.records import Record
from firefly_cl.benchmark.report import ScenarioSummary
from firefly_cl.benchmark.summary import Summary, mean_known

INK, MUTED, GRID, PANEL = "#1b1f24", "#5b6672", "#dde2e7", "#ffffff"
# Okabe and Ito 2008, without the yellow that white paper swallows.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5c3e", "#6b7280")
_BANDS = 6
"""Bands of more lines than these would hide one another."""
_NAN = float("nan")
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


def accuracy_over_tasks(group: ScenarioSummary, size: Size) -> Figure | None:
    """Average test accuracy over the tasks seen so far; bands are a standard deviation of seeds."""
    if group.grows or group.prunes:
        return None
    curves = {summary.label: summary.curves() for summary in group.summaries}
    return _lines(group, size, curves, "accuracy, tasks so far (%)", 100.0, 100.0)


def class_accuracy_over_tasks(group: ScenarioSummary, size: Size) -> Figure | None:
    """Average test accuracy over the tasks seen so far, where the task is not told."""
    curves = {
        summary.label: [
            [mean_known(row) for row in record.class_incremental["accuracy"]]
            for record in summary.records
        ]
        for summary in group.summaries
        if summary.class_incremental
    }
    if not curves:
        return None
    return _lines(group, size, curves, "class-incremental accuracy, tasks so far (%)", 100.0, 100.0)


def size_over_tasks(group: ScenarioSummary, size: Size) -> Figure | None:
    """Floats needed to answer the tasks so far."""
    if group.grows or group.prunes:
        return None
    curves = {
        summary.label: [list(record.parameters_by_task) for record in summary.records]
        for summary in group.summaries
    }
    figure = _lines(group, size, curves, "floats")
    axes = figure.axes[0]
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    return figure


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


def layer_widths(group: ScenarioSummary, size: Size) -> Figure | None:
    """Units of each layer by the task that owns them, of the first seed; None if nobody grows."""
    growing = [
        summary
        for summary in group.summaries
        if any(sum(1 for units in owners if units) > 1 for owners in _widths(summary).values())
    ]
    if not growing:
        return None
    tasks = len(group.tasks())
    colours = owner_colours(tasks)
    layers = [list(_widths(summary).items()) for summary in growing]
    bar = 0.19
    with mpl.rc_context(STYLE):
        heights = [max(0.7, bar * len(found)) for found in layers]
        figure = Figure(
            figsize=(size.width, sum(heights) + 0.5 * len(layers) + 0.75), layout="constrained"
        )
        grid = figure.subplots(
            len(layers), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        for axes, summary, found in zip(grid[:, 0], growing, layers, strict=True):
            stack(axes, found, colours)
            longest = 28 if size.panels > 2 else 20
            names = [short(name, longest) for name, _ in found]
            axes.set_yticks(range(len(names)), names)
            axes.set_title(f"{summary.label}, seed {summary.seeds[0]}", loc="left")
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.grid(axis="x")
            axes.spines[["left", "bottom"]].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(5 if size.panels > 2 else 4, integer=True))
        grid[-1, 0].set_xlabel("units")
        owner_bar(figure, list(grid[:, 0]), colours, tasks)
    return figure


def accuracy_over_floats(group: ScenarioSummary, size: Size) -> Figure | None:
    """Validation accuracy at the end of every growth round against the floats it had."""
    return _over_rounds(group, size, "parameters", lambda record: record.parameters)


def accuracy_over_flops(group: ScenarioSummary, size: Size) -> Figure | None:
    """Validation accuracy at the end of every growth round against the operations it took."""
    return _over_rounds(group, size, "flops", lambda record: record.flops[0])


def _over_rounds(
    group: ScenarioSummary, size: Size, what: str, final: Callable[[Record], float]
) -> Figure | None:
    records = [record for summary in group.summaries for record in summary.records]
    if not group.grows or any(record.validation_accuracy[-1][0] is None for record in records):
        return None
    curves, places = {}, {}
    for summary in group.summaries:
        # a step that found nothing to add left no event
        rounds = min(len(record.growth_events) for record in summary.records)
        curves[summary.label] = [
            [
                *(event["validation_accuracy"] for event in record.growth_events[:rounds]),
                record.validation_accuracy[-1][0],
            ]
            for record in summary.records
        ]
        at = [
            [*(event[f"{what}_before"] for event in record.growth_events[:rounds]), final(record)]
            for record in summary.records
        ]
        places[summary.label] = [statistics.fmean(values) for values in zip(*at, strict=True)]
    figure = _lines(group, size, curves, "validation accuracy (%)", 100.0, 100.0, places)
    axes = figure.axes[0]
    axes.set_xlabel("floats" if what == "parameters" else "FLOPs of one image")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    return figure


FIGURES: Mapping[str, tuple[str, Draw]] = {
    "accuracy": ("Accuracy over tasks", accuracy_over_tasks),
    "class-incremental": ("Accuracy over tasks, the task not told", class_accuracy_over_tasks),
    "matrix": ("Accuracy of each task after each task", accuracy_matrices),
    "size": ("Size over tasks", size_over_tasks),
    "widths": ("Layer widths by owner task", layer_widths),
    "reuse": ("Older units that each task reads", reuse),
    "nearest": ("Older task that each task began as a copy of", nearest_tasks),
    "rounds": ("Accuracy against size, round by round", accuracy_over_floats),
    "rounds-flops": ("Accuracy against operations, round by round", accuracy_over_flops),
}
"""Name of each figure -> its title and how it is drawn."""


def styles(group: ScenarioSummary) -> dict[str, tuple[str, str]]:
    """Colour and marker of each strategy: firefly first, the others by name."""
    labels = sorted(
        (summary.label for summary in group.summaries),
        key=lambda label: (not label.startswith("firefly"), label),
    )
    return {
        # colours come round again with other markers
        label: (SERIES[i % len(SERIES)], MARKERS[(i + i // len(SERIES)) % len(MARKERS)])
        for i, label in enumerate(labels)
    }


def _lines(
    group: ScenarioSummary,
    size: Size,
    curves: Mapping[str, Sequence[Sequence[float | None]]],
    label: str,
    scale: float = 1.0,
    limit: float = float("inf"),
    places: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """One line for each label over tasks, or over `places`, each point the mean over seeds."""
    style = styles(group)
    longest = max(len(short(name, 30)) for name in curves)
    columns = min(len(curves), max(1, int(size.width * 14) // (longest + 6)))
    legend_rows = -(-len(curves) // columns)
    with mpl.rc_context(STYLE):
        height = (3.1 if size.panels > 2 else 2.5) + 0.2 * legend_rows
        figure = Figure(figsize=(size.width, height), layout="constrained")
        axes = figure.subplots()
        for name, seeds in curves.items():
            colour, marker = style[name]
            points: list[list[float]] = []
            x: list[float] = []
            for task, at in enumerate(zip(*seeds, strict=True), 1):
                known = [scale * value for value in at if value is not None]
                if len(known) == len(at):
                    points.append(known)
                    x.append(task if places is None else places[name][task - 1])
            middle = [statistics.fmean(at) for at in points]
            axes.plot(x, middle, color=colour, marker=marker, label=short(name, 30), clip_on=False)
            if len(seeds) > 1 and len(curves) <= _BANDS:
                spread = [statistics.stdev(at) for at in points]
                axes.fill_between(
                    x,
                    [m - s for m, s in zip(middle, spread, strict=True)],
                    # no accuracy is above 100 %, though a deviation from the mean may be
                    [min(m + s, limit) for m, s in zip(middle, spread, strict=True)],
                    color=colour,
                    alpha=0.16,
                    linewidth=0,
                )
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("tasks learnt")
        axes.set_title(label, loc="left", color=MUTED, fontsize=8.5)
        if places is None:
            _task_ticks(axes.xaxis, len(group.tasks()), offset=1)
        axes.margins(x=0.03)
        figure.legend(loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.4)
    return figure


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
            _task_ticks(axes.xaxis, tasks, offset=0.5)
            _task_ticks(axes.yaxis, tasks, offset=0.5)
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


def _task_ticks(axis: Any, tasks: int, offset: float) -> None:
    """Number tasks from 1, few enough that numbers never touch."""
    step = 1 if tasks <= 10 else 5 if tasks <= 30 else 10
    numbers = [1, *range(step, tasks + 1, step)] if step > 1 else list(range(1, tasks + 1))
    axis.set_ticks([number - 1 + offset for number in numbers], [str(n) for n in numbers])


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


def _widths(summary: Summary) -> Mapping[str, Sequence[int]]:
    return summary.records[0].widths


def owner_colours(tasks: int) -> Colormap:
    """A colour for each of so many owner tasks."""
    ramp = mpl.colormaps["viridis"]
    return ListedColormap([ramp(0.12 + 0.8 * t / max(1, tasks - 1)) for t in range(tasks)])


def stack(axes: Axes, layers: Sequence[tuple[str, Sequence[int]]], colours: Colormap) -> None:
    """A bar for each layer, from the top down, of its units by owner."""
    for row, (_, owners) in enumerate(layers):
        left = 0
        for task, units in enumerate(owners):
            if units:
                axes.add_patch(
                    Rectangle(
                        (left, row - 0.36),
                        units,
                        0.72,
                        facecolor=colours(task),
                        edgecolor=PANEL,
                        linewidth=0.4,
                    )
                )
            left += units
    widest = max((sum(owners) for _, owners in layers), default=1)
    axes.set_xlim(0, 1.03 * max(1, widest))


def owner_bar(figure: Figure, axes: Sequence[Axes], colours: Colormap, tasks: int) -> None:
    """A bar below the figure that tells the owners' colours."""
    norm = mpl.colors.BoundaryNorm([t + 0.5 for t in range(tasks + 1)], tasks)
    mappable = mpl.cm.ScalarMappable(norm, colours)
    width, height = figure.get_size_inches()
    thick = 0.11  # inches, however tall the figure is
    bar = figure.colorbar(
        mappable,
        ax=axes,
        location="bottom",
        fraction=min(0.3, 1.6 * thick / height),
        aspect=0.5 * width / thick,
        pad=0.02,
    )
    bar.outline.set_visible(False)
    step = 1 if tasks <= 10 else 5
    numbers = [1, *range(step, tasks + 1, step)] if step > 1 else list(range(1, tasks + 1))
    bar.set_ticks(numbers, labels=[str(number) for number in numbers])
    bar.ax.minorticks_off()
    bar.set_label("owner task")


def short(name: str, longest: int) -> str:
    """A name with its middle left out where it is longer than so many characters."""
    if len(name) <= longest:
        return name
    tail = (longest - 1) // 2
    return f"{name[: longest - 1 - tail]}…{name[-tail:]}"
