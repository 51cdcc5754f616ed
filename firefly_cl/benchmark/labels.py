"""What a row of a report is called: its strategy, and what tells it from others of that name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from firefly_cl.benchmark.configuration import digest, flat, with_defaults

CRITERION = "criterion"
"""The option of growth that names what grows the network."""

PRICE = "lam"
"""The option of pruning that a sweep goes through."""


def label_among(
    configuration: Mapping[str, Any],
    rivals: Sequence[Mapping[str, Any]],
    told_by: str | None = None,
    name: str | None = None,
) -> str:
    """The strategy, with the settings in which it differs from its rivals of the same name.

    rivals: all configurations of that name, this one too. told_by: an option, CRITERION or PRICE,
    that stands in place of the strategy even where all rivals share it. name: what stands in place
    of the strategy whatever differs.
    """
    mine = flat(with_defaults(configuration))
    theirs = [flat(with_defaults(rival)) for rival in rivals]
    differing = [
        setting
        for setting in dict.fromkeys(setting for rival in theirs for setting in rival)
        if setting != "seed" and any(rival.get(setting) != mine.get(setting) for rival in theirs)
    ]
    label = name or str(mine["strategy"])
    criterion, price = f"options.{CRITERION}", f"options.{PRICE}"
    if name is None and (differing == [price] or (told_by == PRICE and price in mine)):
        label = f"{PRICE} {mine.get(price)}"
        differing = [setting for setting in differing if setting != price]
    elif name is None and (criterion in differing or told_by == CRITERION):
        label = str(mine.get(criterion, label))
        differing = [setting for setting in differing if setting != criterion]
    # what is not told is a default, or a setting of another criterion's
    told = [f"{each.rpartition('.')[2]}={mine[each]}" for each in differing if each in mine]
    return f"{label} ({', '.join(told)})" if told else label


def row_digest(configuration: Mapping[str, Any]) -> str:
    """The digest of a configuration but for its seed: runs that share it make one row."""
    return digest({name: value for name, value in configuration.items() if name != "seed"})
