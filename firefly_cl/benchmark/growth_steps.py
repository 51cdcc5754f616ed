"""What growth steps gain at once, beside what the training after them gains."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

STEP_COLUMNS = ("criterion", "seeds", "promised", "obtained", "training", "share %")
"""Decreases of the loss by one growth step, as promised and as obtained on training batches; of the
validation loss from one step to the next, by training; the step's share of the latter."""


def step_row(label: str, seeds: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[str, ...]:
    """The cells under STEP_COLUMNS, means over all steps of all seeds.

    seeds: the growth events of each. Training and share are of the steps that another one follows;
    a dash stands where nothing is promised, or where none follows.
    """
    events = [event for of_seed in seeds for event in of_seed]
    promised = statistics.fmean(event["predicted_decrease"] or 0.0 for event in events)
    gained, trained = [], []
    for of_seed in seeds:
        for event, following in pairwise(of_seed):
            before, after = event.get("validation_loss"), following.get("validation_loss")
            if before is not None and after is not None:
                gained.append(_obtained(event))
                trained.append(before - after)
    return (
        label,
        str(len(seeds)),
        f"{promised:.4f}" if promised else "-",
        _signed(statistics.fmean(map(_obtained, events))),
        _signed(statistics.fmean(trained)) if trained else "-",
        _signed(100 * sum(gained) / sum(trained), 1) if sum(trained) > 0 else "-",
    )


def _obtained(event: Mapping[str, Any]) -> float:
    return float(event.get("obtained_decrease") or 0.0)


def _signed(value: float, digits: int = 4) -> str:
    """So many digits behind the point, and no minus before zeros."""
    return f"{round(value, digits) + 0.0:.{digits}f}"
