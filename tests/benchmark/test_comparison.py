"""Paired differences and transfer, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmark_fakes import record

from firefly_cl.benchmark.comparison import (
    backward_transfer,
    compare,
    forward_transfer,
    paired_p,
)
from firefly_cl.benchmark.records import Record
from firefly_cl.benchmark.report import summaries

THREE = [[0.9, None, None], [0.7, 0.8, None], [0.6, 0.9, 0.5]]


def with_average(strategy: str, seed: int, average: float) -> Record:
    return replace(record(strategy, seed), average_accuracy=average)


def test_a_paired_test_is_that_of_the_text_book() -> None:
    # differences 1, 2, 3: mean 2, standard error 1 / sqrt 3, t = 3.4641 with 2 degrees of freedom
    assert paired_p([1.0, 2.0, 3.0]) == pytest.approx(0.0741799, abs=1e-6)
    assert paired_p([-1.0, -2.0, -3.0]) == paired_p([1.0, 2.0, 3.0])
    assert paired_p([0.5]) is None and paired_p([]) is None
    assert paired_p([0.0, 0.0]) is None
    assert paired_p([0.9 - 0.8, 0.8 - 0.7]) is None  # as equal, but for their last bits


def test_backward_transfer_is_the_change_since_a_task_ended() -> None:
    ended = replace(record(n_tasks=3), accuracy=THREE)
    assert backward_transfer(ended) == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)
    late = replace(ended, accuracy=[[None] * 3, [None] * 3, [0.5] * 3])
    assert backward_transfer(late) is None
    assert backward_transfer(record(n_tasks=1)) is None


def test_forward_transfer_is_what_a_task_gains_over_being_learnt_alone() -> None:
    mine = replace(record(n_tasks=3), accuracy=THREE)
    alone = replace(
        record("individual", n_tasks=3),
        accuracy=[[0.5, None, None], [0.5, 0.7, None], [0.5, 0.7, 0.9]],
    )
    assert forward_transfer(mine, alone) == pytest.approx(((0.8 - 0.7) + (0.5 - 0.9)) / 2)
    late = replace(mine, accuracy=[[None] * 3, [None] * 3, [0.5] * 3])
    assert forward_transfer(late, alone) is None


def test_strategies_are_compared_over_the_seeds_that_both_have() -> None:
    found = [with_average("firefly", seed, value) for seed, value in enumerate((0.9, 0.92, 0.94))]
    found += [with_average("replay", seed, value) for seed, value in ((1, 0.9), (2, 0.91))]
    found += [with_average("individual", 0, 0.7)]
    (group,) = summaries(found)
    first, replay, individual = compare(group)
    assert (first.label, first.seeds, first.difference, first.p) == ("firefly", 3, 0.0, None)
    assert (replay.label, replay.seeds) == ("replay", 2)
    assert replay.difference == pytest.approx((0.9 - 0.92 + 0.91 - 0.94) / 2)
    assert replay.p == pytest.approx(paired_p([-0.02, -0.03]))
    assert individual.seeds == 1 and individual.p is None
    assert individual.forward == 0.0 and replay.forward is None
    assert first.forward is not None


def test_without_the_control_nothing_is_said_of_forward_transfer() -> None:
    (group,) = summaries([record("firefly"), record("naive", forgets=0.1)])
    firefly, naive = compare(group)
    assert firefly.forward is None and naive.forward is None
    assert firefly.backward == 0.0 and naive.backward is not None and naive.backward < -0.05
