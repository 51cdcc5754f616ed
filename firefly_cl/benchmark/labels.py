"""What a row of a report is called: its strategy, and what tells it from others of that name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from firefly_cl.benchmark.configuration import flat, with_defaults

CRITERION = "criterion"
"""The option of growth that names what grows the network."""

PRICE = "lam"
"""The option of pruning that a sweep goes through."""


def label_among(
    configuration: Mapping[str, Any],
    rivals: Sequence[Mapping[str, Any]],
    told_by: str | None = None,
) -> str:
    """The strategy, with the settings in which it differs from its rivals of the same name.

    rivals: all configurations of that strategy, this one too. told_by: an option, CRITERION or
    PRICE, that stands in place of the strategy even where all rivals share it.
    """
    mine = flat(with_defaults(configuration))
    theirs = [flat(with_defaults(rival)) for rival in rivals]
    names = [
        name
        for name in dict.fromkeys(name for rival in theirs for name in rival)
        if name != "seed" and any(rival.get(name) != mine.get(name) for rival in theirs)
    ]
    label = str(mine["strategy"])
    criterion, price = f"options.{CRITERION}", f"options.{PRICE}"
    if names == [price] or (told_by == PRICE and price in mine):
        label = f"{PRICE} {mine.get(price)}"
        names = [name for name in names if name != price]
    elif criterion in names or told_by == CRITERION:
        label = str(mine.get(criterion, label))
        names = [name for name in names if name != criterion]
    # what is not told is a default, or a setting of another criterion's
    settings = [f"{name.rpartition('.')[2]}={mine[name]}" for name in names if name in mine]
    return f"{label} ({', '.join(settings)})" if settings else label
