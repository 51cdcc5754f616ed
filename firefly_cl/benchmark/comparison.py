"""What seeds say of two strategies: paired differences, and transfer between tasks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from firefly_cl.benchmark.records import Record
from firefly_cl.benchmark.report import ScenarioSummary
from firefly_cl.benchmark.summary import Summary, mean_known

CONTROL = "individual"
"""The strategy whose networks know one task each: what a task reaches without any other."""

_ROUNDING = 1e-12
"""How far differences of accuracies may be apart and still be equal."""


@dataclass(frozen=True)
class Comparison:
    """One strategy beside the first of its table; fractions, None where records do not tell.

    difference: of average accuracy, mean over the `seeds` that both have. p: of a two-sided
    paired t-test over these, None for fewer than two or where all differences are alike.
    backward: mean over seeds of `backward_transfer`. forward: of `forward_transfer`.
    """

    label: str
    seeds: int
    difference: float | None
    p: float | None
    backward: float | None
    forward: float | None


def compare(group: ScenarioSummary) -> list[Comparison]:
    """Every strategy of a stream against the first row of its table."""
    first = group.summaries[0]
    control = next((each for each in group.summaries if each.label == CONTROL), None)
    return [_compared(summary, first, control) for summary in group.summaries]


def _compared(summary: Summary, first: Summary, control: Summary | None) -> Comparison:
    pairs = _pairs(summary, first)
    known = [
        (mine.average_accuracy, theirs.average_accuracy)
        for mine, theirs in pairs
        if mine.average_accuracy is not None and theirs.average_accuracy is not None
    ]
    differences = [mine - theirs for mine, theirs in known]
    forward = None
    if control is not None:
        forward = mean_known([forward_transfer(*pair) for pair in _pairs(summary, control)])
    return Comparison(
        summary.label,
        len(known),
        statistics.fmean(differences) if differences else None,
        paired_p(differences),
        mean_known([backward_transfer(record) for record in summary.records]),
        forward,
    )


def _pairs(one: Summary, other: Summary) -> list[tuple[Record, Record]]:
    by_seed = {record.seed: record for record in other.records}
    return [(record, by_seed[record.seed]) for record in one.records if record.seed in by_seed]


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of a paired t-test, from the differences of the pairs (Student 1908)."""
    if len(differences) < 2 or max(differences) - min(differences) < _ROUNDING:
        return None
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return p if math.isfinite(p) else None


def backward_transfer(record: Record) -> float | None:
    """Mean over earlier tasks j of a_{T-1,j} - a_{j,j}: below 0 where learning on cost accuracy.

    Lopez-Paz and Ranzato 2017, arXiv 1706.08840, eq. for BWT. None for one task, and where tasks
    were not answered when they ended.
    """
    accuracy = record.accuracy
    changes = [
        last - first
        for j, last in enumerate(accuracy[-1][: len(accuracy) - 1])
        if last is not None and (first := accuracy[j][j]) is not None
    ]
    return statistics.fmean(changes) if changes else None


def forward_transfer(record: Record, control: Record) -> float | None:
    """Mean over the tasks j after the first of a_{j,j} minus the accuracy of j learnt alone.

    What a task gains from those before it (Veniat, Denoyer, Ranzato 2021, arXiv 2012.12631,
    compare with independent models). `control`: the record of `individual`, with the same seed.
    None for one task, and where tasks were not answered when they ended.
    """
    gains = []
    for j in range(1, len(record.accuracy)):
        mine, alone = record.accuracy[j][j], control.accuracy[j][j]
        if mine is None or alone is None:
            return None
        gains.append(mine - alone)
    return statistics.fmean(gains) if gains else None
