"""Pruning inside a task: the newest task's own units go, older answers stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from growing_streams import PLAN, RECIPE, answers, growing, stream_of

from firefly_cl.errors import ConfigurationError, DivergenceError
from firefly_cl.gates.pruning import GatePruning
from firefly_cl.network import floats

STREAM = [((0, 1), 24), ((0, 1, 2), 24)]
GATES = GatePruning(lam=1e-3, epochs=4)
PRUNING = replace(PLAN, grow_at=(), prune_at=(0.4, 0.6), gates=GATES, restart=True)


def test_tasks_are_pruned_between_and_older_ones_answer_bit_equally() -> None:
    benchmark = stream_of(STREAM)
    strategy = growing("mlp-bn", plan=PRUNING, recipe=replace(RECIPE, epochs=5))
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    first, size = answers(strategy.model, 0, images), floats(strategy.net)
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert torch.equal(answers(strategy.model, 0, images), first)
    events = strategy.firefly.events
    assert {(e["task"], e["epoch"]) for e in events} >= {(0, 2), (1, 2)}
    for task, floats_then in ((0, size), (1, floats(strategy.net))):
        mine: list[Any] = [event for event in events if event["task"] == task]
        assert sum(mine[0]["removed"].values()) > 0
        assert mine[-1]["parameters"] == floats_then < mine[0]["parameters_before"]
        for event in mine:
            assert event["parameters"] <= event["parameters_before"]
        for space, units in mine[-1]["kept"].items():
            assert strategy.net.spaces[space].width(task) == units


def test_a_task_of_single_units_is_left_as_it_is() -> None:
    benchmark = stream_of(STREAM)
    plan = replace(PRUNING, seed=0.01, early=1.0)
    strategy = growing(plan=plan, recipe=replace(RECIPE, epochs=5))
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
    assert {event["task"] for event in strategy.firefly.events} == {0}
    assert all(widths[1] == 1 for widths in strategy.net.widths().values())


def test_gates_that_diverge_are_told() -> None:
    strategy = growing(plan=PRUNING, recipe=replace(RECIPE, epochs=5))
    plain = strategy._criterion

    def broken(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = plain(logits, labels)
        return value if strategy.net.training else value * float("nan")

    strategy._criterion = broken
    with pytest.raises(DivergenceError, match="search of gates"):
        strategy.train(stream_of(STREAM).train_stream[0], eval_streams=[])


@pytest.mark.parametrize("shares", [(0.0,), (1.0,), (0.5, 2.0)])
def test_pruning_needs_shares_of_the_epochs(shares: tuple[float, ...]) -> None:
    with pytest.raises(ConfigurationError, match="prune_at"):
        replace(PLAN, prune_at=shares)
