"""The report's figures, drawn from summaries: wide for pages and files, narrow for phones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from firefly_cl.benchmark.figure_style import (
    MARKERS,
    MUTED,
    SERIES,
    STYLE,
    Draw,
    Size,
    short,
    task_ticks,
)
from firefly_cl.benchmark.heat_maps import accuracy_matrices, nearest_tasks, reuse
from firefly_cl.benchmark.owner_widths import layer_widths
from firefly_cl.benchmark.quantities import count
from firefly_cl.benchmark.records import Record
from firefly_cl.benchmark.report import ScenarioSummary
from firefly_cl.benchmark.summary import mean_known

_BANDS = 6
"""Bands of more lines than these would hide one another."""


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
            task_ticks(axes.xaxis, len(group.tasks()), offset=1)
        axes.margins(x=0.03)
        figure.legend(loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.4)
    return figure
