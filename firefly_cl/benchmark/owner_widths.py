"""Figures of units by the task that owns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from firefly_cl.benchmark.figure_style import PANEL, STYLE, Size, short
from firefly_cl.benchmark.report import ScenarioSummary
from firefly_cl.benchmark.summary import Summary


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
