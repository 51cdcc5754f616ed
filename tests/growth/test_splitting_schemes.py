"""Splitting schemes: what they promise they deliver, and the budget buys the best of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import product

import pytest
import torch
from curved_nets import BATCH, curved, loss
from hypothesis import given
from hypothesis import strategies as st

from firefly_cl.growth.budget import Budget, Candidate
from firefly_cl.growth.curvature import Curvature
from firefly_cl.growth.eigenvectors import Extremes, exact_extremes
from firefly_cl.growth.schemes import (
    Scheme,
    commit_schemes,
    select_schemes,
    signed_schemes,
)

CS = (1.0, 1.5, 3.0, 7.0)
SCHEMES = signed_schemes(3.0)


def candidate(
    scheme: Scheme, space: str, unit: int, lowest: Extremes, highest: Extremes, reach: float
) -> Candidate:
    low, high = (float(extremes[space].values[unit]) for extremes in (lowest, highest))
    gain = scheme.gain(low, high, reach)
    return Candidate(scheme.name, space, unit, gain, 1, units=scheme.added)


@pytest.mark.parametrize("c", CS)
def test_copies_keep_shares_and_offsets_within_their_bounds(c: float) -> None:
    for scheme in signed_schemes(c):
        copies = scheme.copies
        assert sum(copy.share for copy in copies) == pytest.approx(1.0)
        assert sum(copy.share * copy.low for copy in copies) == pytest.approx(0.0)
        assert sum(copy.share * copy.high for copy in copies) == pytest.approx(0.0)
        assert sum(abs(copy.share) for copy in copies) <= c + 1e-12
        assert all(abs(copy.low) + abs(copy.high) <= 1 for copy in copies)
        assert scheme.added == len(copies) - 1 <= 3


@pytest.mark.parametrize("c", CS)
@pytest.mark.parametrize(("low", "high"), [(-2.0, 0.7), (-0.2, 1.5), (-1.0, -0.3), (0.4, 2.0)])
def test_the_best_scheme_reaches_the_bound_of_the_paper(c: float, low: float, high: float) -> None:
    schemes = {scheme.name: scheme for scheme in signed_schemes(c)}
    gains = {name: scheme.gain(low, high, 0.1) for name, scheme in schemes.items()}
    half = 0.1**2 / 2
    best = -half * ((c + 1) / 2 * min(low, 0.0) - (c - 1) / 2 * max(high, 0.0))
    assert max(0.0, *gains.values()) == pytest.approx(best)
    assert gains["split"] == pytest.approx(-half * low)
    if c > 1:
        assert gains["signed-binary"] == pytest.approx(half * (c - 1) / (c + 1) * high)
        assert gains["lower-triplet"] == pytest.approx(-half * (c + 1) / 2 * low)
        assert gains["upper-triplet"] == pytest.approx(half * (c - 1) / 2 * high)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_every_scheme_changes_the_loss_as_promised(scheme: Scheme, tasks: int) -> None:
    net, reach = curved(tasks), 1e-2
    lowest, highest = exact_extremes([Curvature(net, net.growable_spaces(), BATCH, loss)], 1000)
    start, frozen = float(loss(net, BATCH).detach()), net(BATCH[0], 0)
    candidates = [candidate(scheme, space, 1, lowest, highest, reach) for space in lowest]
    largest = max(abs(promise.gain) for promise in candidates)
    assert largest > 1e-7
    for promise in candidates:
        moved, space = copy.deepcopy(net), promise.space
        commit_schemes(moved, [promise], SCHEMES, lowest, highest, reach)
        width = net.spaces[space].width(net.current)
        assert moved.spaces[space].width(net.current) == width + scheme.added
        obtained = start - float(loss(moved, BATCH).detach())
        assert obtained == pytest.approx(promise.gain, rel=0.1, abs=0.02 * largest), space
        if tasks > 1:
            assert torch.equal(moved(BATCH[0], 0), frozen)


def test_schemes_in_all_spaces_at_once_do_what_they_do_alone() -> None:
    """Later edits follow the columns that earlier ones divided, with their signed shares."""
    net, reach = curved(2), 3e-3
    lowest, highest = exact_extremes([Curvature(net, net.growable_spaces(), BATCH, loss)], 1000)
    kept = [
        candidate(scheme, space, unit, lowest, highest, reach)
        for i, space in enumerate(lowest)
        for unit, scheme in ((0, SCHEMES[i % 5]), (1, SCHEMES[(i + 2) % 5]))
    ]
    start = float(loss(net, BATCH).detach())
    edits = commit_schemes(net, kept, SCHEMES, lowest, highest, reach)
    assert len(edits) == len(net.growable_spaces())
    promised = sum(promise.gain for promise in kept)
    assert start - float(loss(net, BATCH).detach()) == pytest.approx(promised, rel=0.05)


GAINS = st.floats(-1, 4, allow_nan=False).map(lambda gain: round(gain, 3))


def offered(units: list[tuple[str, float, float]], costs: dict[str, int]) -> list[Candidate]:
    return [
        Candidate(
            scheme.name,
            space,
            unit,
            scheme.gain(-low, high, 1.0),
            scheme.added * costs[space],
            units=scheme.added,
        )
        for unit, (space, low, high) in enumerate(units)
        for scheme in SCHEMES
    ]


@given(
    units=st.lists(st.tuples(st.sampled_from("ab"), GAINS, GAINS), max_size=4),
    costs=st.fixed_dictionaries({"a": st.integers(1, 3), "b": st.integers(1, 3)}),
    amount=st.integers(1, 20),
)
def test_what_is_bought_is_within_one_scheme_of_the_best_that_could_be(
    units: list[tuple[str, float, float]], costs: dict[str, int], amount: int
) -> None:
    """The greedy rule of the multiple-choice knapsack against brute force."""
    candidates = offered(units, costs)
    choices = [[None, *(c for c in candidates if c.unit == unit)] for unit in range(len(units))]
    best = max(
        sum(c.gain for c in kept if c)
        for kept in product(*choices)
        if sum(c.cost for c in kept if c) <= amount
    )

    def together(more: Mapping[str, int]) -> int:
        return sum(count * costs[space] for space, count in more.items())

    kept = select_schemes(candidates, Budget(amount), {"a": 99, "b": 99}, together)
    assert len({c.unit for c in kept}) == len(kept) and all(c.gain > 0 for c in kept)
    assert sum(c.cost for c in kept) <= amount
    largest = max((c.gain for c in candidates), default=0.0)
    assert sum(c.gain for c in kept) >= best - max(largest, 0.0) - 1e-9


def test_units_go_over_to_more_copies_while_the_budget_lasts() -> None:
    candidates = offered([("a", 2.0, 0.8), ("a", 1.0, 0.0)], {"a": 1})

    def bought(amount: int, room: int = 99) -> dict[int, str]:
        kept = select_schemes(
            candidates, Budget(amount), {"a": room}, lambda more: sum(more.values())
        )
        return {c.unit: c.kind for c in kept}

    assert bought(1) == {0: "split"}
    assert bought(2) == {0: "lower-triplet"}
    assert bought(4) == {0: "lower-triplet", 1: "lower-triplet"}
    assert bought(5) == {0: "quartet", 1: "lower-triplet"}
    assert bought(99) == {0: "quartet", 1: "lower-triplet"}
    assert bought(99, room=1) == {0: "split"}
