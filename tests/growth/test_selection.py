"""Selection under a budget, against brute force where greedy choice is optimal."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firefly_cl.errors import ConfigurationError
from firefly_cl.growth.budget import Budget, Candidate, select

SPACES = ("a", "b", "c")


def candidates_of(values: list[tuple[int, float, int]]) -> list[Candidate]:
    return [
        Candidate("new", SPACES[space], unit, gain, cost)
        for unit, (space, gain, cost) in enumerate(values)
    ]


GAINS = st.floats(-1, 1, allow_nan=False).map(lambda gain: round(gain, 3))
ROOM = st.fixed_dictionaries({name: st.integers(0, 3) for name in SPACES})


def fits(chosen: tuple[Candidate, ...], amount: int, most: dict[str, int]) -> bool:
    return sum(c.cost for c in chosen) <= amount and all(
        sum(c.space == name for c in chosen) <= room for name, room in most.items()
    )


@given(
    values=st.lists(st.tuples(st.integers(0, 2), GAINS, st.just(3)), max_size=7),
    amount=st.integers(1, 20),
    most=ROOM,
)
def test_units_of_equal_cost_are_chosen_optimally(
    values: list[tuple[int, float, int]], amount: int, most: dict[str, int]
) -> None:
    candidates = candidates_of(values)
    best = max(
        sum(c.gain for c in chosen)
        for n in range(len(candidates) + 1)
        for chosen in combinations(candidates, n)
        if fits(chosen, amount, most)
    )
    found = sum(c.gain for c in select(candidates, Budget(amount), most))
    assert found == pytest.approx(best, abs=1e-9)


@given(
    values=st.lists(st.tuples(st.integers(0, 2), GAINS, st.integers(1, 9)), max_size=12),
    amount=st.integers(1, 30),
    most=ROOM,
)
def test_no_budget_is_exceeded_and_none_is_wasted(
    values: list[tuple[int, float, int]], amount: int, most: dict[str, int]
) -> None:
    candidates = candidates_of(values)
    kept = tuple(select(candidates, Budget(amount, "parameters"), most))
    assert fits(kept, amount, most)
    assert all(c.gain > 0 for c in kept) and len(set(kept)) == len(kept)
    for candidate in candidates:
        if candidate not in kept and candidate.gain > 0:
            assert not fits((*kept, candidate), amount, most)


def test_gain_for_cost_decides_not_gain() -> None:
    dear, cheap = Candidate("new", "a", 0, 1.0, 10), Candidate("split", "b", 0, 0.5, 2)
    most = {"a": 1, "b": 1}
    assert select([dear, cheap], Budget(10, "parameters"), most) == [cheap]
    assert select([dear, cheap], Budget(12, "parameters"), most) == [cheap, dear]


@pytest.mark.parametrize(("amount", "cost"), [(0, "units"), (-3, "flops"), (1, "seconds")])
def test_budgets_that_buy_nothing_are_errors(amount: int, cost: str) -> None:
    with pytest.raises(ConfigurationError):
        Budget(amount, cost)
