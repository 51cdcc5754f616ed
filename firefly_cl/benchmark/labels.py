"""What a row of a report is called: its strategy, and what tells it from others of that name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from firefly_cl.benchmark.configuration import digest, flat, with_defaults

CRITERION = "criterion"
"""The option of growth that names what grows the network."""

PRICE = "price"
"""What tells a row of a sweep of prunings: its price, or the share that it keeps."""

PRICES = {"prune_keep": "keep", "lam": "lam"}
"""The options that such a sweep goes through, and what rows call them; the first that is given."""


def price_of(options: Mapping[str, Any]) -> str:
    """As in `lam 0.001` or `keep 0.25`; empty for options of neither."""
    return next((f"{name} {options[o]}" for o, name in PRICES.items() if options.get(o)), "")


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
    criterion, swept = f"options.{CRITERION}", [f"options.{option}" for option in PRICES]
    price = price_of({option: mine.get(f"options.{option}") for option in PRICES})
    alone = bool(differing) and all(setting in swept for setting in differing)
    if name is None and price and (alone or told_by == PRICE):
        label = price
        differing = [setting for setting in differing if setting not in swept]
    elif name is None and (criterion in differing or told_by == CRITERION):
        label = str(mine.get(criterion, label))
        differing = [setting for setting in differing if setting != criterion]
    # what is not told is a default, or a setting of another criterion's
    told = [f"{each.rpartition('.')[2]}={mine[each]}" for each in differing if each in mine]
    return f"{label} ({', '.join(told)})" if told else label


def row_digest(configuration: Mapping[str, Any]) -> str:
    """The digest of a configuration but for its seed: runs that share it make one row."""
    return digest({name: value for name, value in configuration.items() if name != "seed"})
