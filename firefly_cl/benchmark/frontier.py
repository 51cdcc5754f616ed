"""Figures of a sweep: validation accuracy against size, one point for each price or share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from firefly_cl.benchmark.configuration import digest
from firefly_cl.benchmark.figure_style import GRID, MARKERS, MUTED, SERIES, STYLE, Draw, Size
from firefly_cl.benchmark.labels import PRICES, label_among, price_of
from firefly_cl.benchmark.quantities import count
from firefly_cl.benchmark.records import Record
from firefly_cl.benchmark.report import ScenarioSummary
from firefly_cl.benchmark.summary import Summary


def frontier_floats(group: ScenarioSummary, size: Size) -> Figure | None:
    """Validation accuracy of pruned networks against the floats they hold."""
    return _frontier(group, size, "parameters", lambda record: record.parameters)


def frontier_flops(group: ScenarioSummary, size: Size) -> Figure | None:
    """Validation accuracy of pruned networks against the operations of one image."""
    return _frontier(group, size, "flops", lambda record: record.flops[0])


FRONTIERS: Mapping[str, tuple[str, Draw]] = {
    "frontier": ("Accuracy against size, price by price", frontier_floats),
    "frontier-flops": ("Accuracy against operations, price by price", frontier_flops),
}
"""Name of each figure -> its title and how it is drawn."""


def _frontier(
    group: ScenarioSummary, size: Size, what: str, final: Callable[[Record], float]
) -> Figure | None:
    records = [record for summary in group.summaries for record in summary.records]
    if not group.prunes or any(record.validation_accuracy[-1][0] is None for record in records):
        return None
    lines = _lines(group.summaries)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(size.width, 3.3 if size.panels > 2 else 2.7), layout="constrained")
        axes = figure.subplots()
        for number, (label, summaries) in enumerate(lines.items()):
            colour, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
            points = sorted(_point(summary, final) for summary in summaries)
            x, y = [at for at, _, _, _ in points], [100 * mean for _, mean, _, _ in points]
            spread = [100 * deviation for _, _, deviation, _ in points]
            axes.errorbar(
                x, y, yerr=spread, color=colour, marker=marker, label=label, elinewidth=0.9
            )
            for at, mean, (_, _, _, price) in zip(x, y, points, strict=True):
                axes.annotate(
                    price, (at, mean), (0, 6), textcoords="offset points", ha="center", fontsize=7
                )
            before = [record for summary in summaries for record in summary.records]
            axes.plot(
                statistics.fmean(r.growth_events[0][f"{what}_before"] for r in before),
                100 * statistics.fmean(r.growth_events[0]["validation_accuracy"] for r in before),
                color=colour,
                marker=marker,
                markerfacecolor="none",
                linestyle="none",
                label="before pruning" if len(lines) == 1 else None,
            )
        axes.grid(axis="both", color=GRID)
        axes.set_xlim(left=0)
        axes.margins(y=0.15)
        axes.set_xlabel("floats" if what == "parameters" else "FLOPs of one image")
        axes.set_title(
            "validation accuracy (%), at each lam or share kept", loc="left", color=MUTED
        )
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.6)
    return figure


def _lines(summaries: Sequence[Summary]) -> dict[str, list[Summary]]:
    """The summaries that differ in their price alone, under the settings that they share."""
    found: dict[str, list[Summary]] = {}
    settings = {}
    for summary in summaries:
        rest = _without_price(summary.records[0].configuration)
        key = digest(rest)
        settings[key] = rest
        found.setdefault(key, []).append(summary)
    if len(found) == 1:
        return {"after pruning": next(iter(found.values()))}
    rivals = list(settings.values())
    return {label_among(settings[key], rivals): group for key, group in found.items()}


def _without_price(configuration: Mapping[str, Any]) -> dict[str, Any]:
    options = {k: v for k, v in configuration["options"].items() if k not in PRICES}
    return {**configuration, "seed": 0, "options": options}


def _point(summary: Summary, final: Callable[[Record], float]) -> tuple[float, float, float, str]:
    """Mean size, mean accuracy, its deviation over seeds (0 for one), price."""
    accuracy = [float(record.validation_accuracy[-1][0] or 0.0) for record in summary.records]
    return (
        statistics.fmean(final(record) for record in summary.records),
        statistics.fmean(accuracy),
        statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
        price_of(summary.records[0].configuration["options"]).removeprefix("lam "),
    )
