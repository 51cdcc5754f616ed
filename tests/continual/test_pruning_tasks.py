"""Pruning inside a task: the newest task's own units go, older answers stay."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from growing_streams import PLAN, RECIPE, answers, growing, stream_of

from firefly_cl.continual.plan import Plan, plan_of
from firefly_cl.continual.training import training_of
from firefly_cl.errors import ConfigurationError, DivergenceError
from firefly_cl.gates.pruning import GatePruning
from firefly_cl.gates.tolerance import Tolerance
from firefly_cl.network import extract, floats

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


def test_layers_of_which_nothing_is_left_are_told() -> None:
    dear = replace(PRUNING, prune_at=(0.4,), gates=replace(GATES, lam=10.0))
    strategy = growing("mlp-bn", plan=dear, recipe=replace(RECIPE, epochs=5))
    spaces = strategy.net.growable_spaces()
    told = f"lam=10 closed all gates of {', '.join(spaces)} in task 0"
    with pytest.warns(UserWarning, match=re.escape(told)):
        strategy.train(stream_of(STREAM).train_stream[0], eval_streams=[])
    assert strategy.net.units() == len(spaces)


def test_gates_that_diverge_are_told() -> None:
    strategy = growing(plan=PRUNING, recipe=replace(RECIPE, epochs=5))
    plain = strategy._criterion

    def broken(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = plain(logits, labels)
        return value if strategy.net.training else value * float("nan")

    strategy._criterion = broken
    with pytest.raises(DivergenceError, match="search of gates"):
        strategy.train(stream_of(STREAM).train_stream[0], eval_streams=[])


def test_a_search_is_told_as_it_goes_on() -> None:
    strategy, told = growing(plan=PRUNING, recipe=replace(RECIPE, epochs=5)), []
    training_of(strategy).progress = told.append
    strategy.train(stream_of(STREAM).train_stream[0], eval_streams=[])
    found = [(news.phase, news.epoch) for news in told]
    passes = [(f"prune, pass {n}", 2) for n in range(1, 5)]
    assert found[2:7] == [*passes, ("train", 2)]


@pytest.mark.parametrize("shares", [(0.0,), (1.0,), (0.5, 2.0)])
def test_pruning_needs_shares_of_the_epochs(shares: tuple[float, ...]) -> None:
    with pytest.raises(ConfigurationError, match="prune_at"):
        replace(PLAN, prune_at=shares)


def test_validation_images_say_how_far_a_task_is_pruned() -> None:
    tolerance = Tolerance(fall=0.1, tries=4)
    plan = replace(PRUNING, seed=4.0, prune_at=(0.8,), prune_tolerance=tolerance)
    strategy = growing("mlp-bn", plan=plan, recipe=replace(RECIPE, epochs=10))
    benchmark = stream_of(STREAM, valid=True)
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    first = answers(strategy.model, 0, images)
    seen: list[tuple[float, int]] = []
    prune = strategy.firefly.prune

    def recomputed(strategy: Any) -> None:
        prune(strategy)
        held = benchmark.valid_stream[1].dataset
        x = torch.stack([held[i][0] for i in range(len(held))])
        y = torch.tensor([int(held[i][1]) for i in range(len(held))])
        right = extract(strategy.net).eval()(x).argmax(1) == y
        seen.append((right.double().mean().item(), strategy.net.units()))

    strategy.firefly.prune = recomputed  # type: ignore[method-assign]
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert torch.equal(answers(strategy.model, 0, images), first)
    event: Any = strategy.firefly.events[-1]
    assert (event["task"], event["epoch"]) == (1, 8) and 1 <= len(event["tries"]) <= 4
    (chosen,) = [each for each in event["tries"] if each["lam"] == event["lam"]]
    ((accuracy, units),) = seen
    assert accuracy == pytest.approx(chosen["accuracy"])
    assert accuracy >= event["validation_accuracy"] - 0.1 - 1e-9
    assert sum(event["kept"].values()) == chosen["units"] and units == strategy.net.units()
    assert event["parameters"] < event["parameters_before"]


def test_a_tolerance_needs_validation_images() -> None:
    plan = replace(PRUNING, prune_tolerance=Tolerance(), validation=0.0)
    strategy = growing(plan=plan, recipe=replace(RECIPE, epochs=5))
    before = {key: value.clone() for key, value in strategy.net.state_dict().items()}
    with pytest.raises(ConfigurationError, match="no validation images"):
        strategy.train(stream_of(STREAM).train_stream[0], eval_streams=[])
    assert all(torch.equal(strategy.net.state_dict()[key], before[key]) for key in before)


def test_a_share_of_the_cost_stands_in_place_of_a_price() -> None:
    with pytest.raises(ConfigurationError, match="leave lam out, or give prune-keep="):
        plan_of({"prune-keep": "0.5", "lam": "1e-3", "prune_at": "0.5"})
    plan = plan_of({"prune_keep": "", "lam": "1e-3", "prune_at": "0.5"})
    assert plan.gates.share is None and plan.gates.lam == 1e-3


def test_options_make_a_tolerance() -> None:
    assert plan_of({"prune_tolerance": ""}).prune_tolerance is None
    plan = plan_of({"prune-tolerance": "0.01", "prune-tries": "3", "prune-at": "0.5"})
    assert plan.prune_tolerance == Tolerance(fall=0.01, tries=3)
    for options, message in (
        ({"prune_tolerance": "little"}, "give a fraction of accuracy such as 0.005"),
        ({"prune_tolerance": "1.5"}, "fall of a pruning tolerance"),
        ({"prune_tolerance": "0.1", "prune_tries": "0"}, "tries of a pruning tolerance"),
        ({"prune_tolerance": "0.1", "lam": "0"}, "begin above 0"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            plan_of(options)
    with pytest.raises(ConfigurationError, match="begin above 0"):
        Plan(gates=GatePruning(lam=0.0), prune_tolerance=Tolerance())
