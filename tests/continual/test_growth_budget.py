"""The budget in floats: never exceeded, shared by the tasks to come, and counted exactly."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from growing_streams import PLAN, RECIPE, answers, backbone, drawn, growing, stream_of

from firefly_cl.continual.model import fitting
from firefly_cl.continual.plan import Plan
from firefly_cl.errors import ConfigurationError
from firefly_cl.growth.budget import growth_cost, unit_cost
from firefly_cl.network import FireflyNet, edits, floats, flops, task_floats

TASKS = [((0, 1), 24), ((2, 3), 24), ((4, 5), 24)]
GREEDY = dataclasses.replace(PLAN, grow_at=(0.25, 0.5, 0.75), growth=4.0, patience=-10.0)
FOUR_EPOCHS = dataclasses.replace(RECIPE, epochs=4)


@pytest.mark.parametrize("name", ["concat", "mlp"])
@pytest.mark.parametrize("spare", [400, 3000])
def test_is_never_exceeded(name: str, spare: int) -> None:
    start = floats(growing(name).net)
    strategy = growing(name, plan=GREEDY, budget=start + spare, recipe=FOUR_EPOCHS)
    left = spare
    images, _ = drawn(range(6), 2, seed=3)
    for number, experience in enumerate(stream_of(TASKS).train_stream):
        before = floats(strategy.net)
        strategy.train(experience)
        used = floats(strategy.net) - before
        assert used <= left // (3 - number)  # the later tasks keep their share
        left -= used
        assert answers(strategy.model, number, images).isfinite().all()
    assert strategy.firefly.events and floats(strategy.net) <= start + spare


def test_is_shared_by_the_tasks_that_the_stream_will_have() -> None:
    start = floats(growing().net)
    strategy = growing(plan=GREEDY, budget=start + 3000, n_tasks=30, recipe=FOUR_EPOCHS)
    for number, experience in enumerate(stream_of(TASKS).train_stream):
        before, left = floats(strategy.net), start + 3000 - floats(strategy.net)
        strategy.train(experience)
        assert floats(strategy.net) - before <= left // (30 - number)
    assert strategy.firefly.events
    with pytest.raises(ConfigurationError, match="n_tasks is 0: give 1 or more"):
        growing(n_tasks=0)


def test_a_net_over_budget_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="over the budget of 100"):
        growing(budget=100)


def test_a_first_head_that_does_not_fit_is_refused_before_it_is_there() -> None:
    start = floats(growing().net)
    first = stream_of([((0, 1, 2, 3, 4), 12), ((5, 6), 12)]).train_stream[0]
    head = 3 * 7  # three classes more than the model came with, of six weights and a bias
    strategy = growing(budget=start + head - 1)
    with pytest.raises(ConfigurationError, match=rf"has {start + head} floats .* 5 classes"):
        strategy.train(first)
    assert floats(strategy.net) == start and strategy.net.tasks[0].classes == 2
    strategy = growing(budget=start + head)
    strategy.train(first)
    assert floats(strategy.net) == start + head


def test_a_budget_is_not_asked_for_what_was_learnt_before() -> None:
    strategy = growing()
    first, second, _ = stream_of(TASKS).train_stream
    strategy.train(first)
    again = growing(model=strategy.net, budget=floats(strategy.net) - 1)
    with pytest.raises(ConfigurationError, match="leaves 0 for task 1"):
        again.train(second)


def test_a_head_that_does_not_fit_is_refused() -> None:
    strategy = growing(budget=floats(growing().net) + 10)
    benchmark = stream_of(TASKS)
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(ConfigurationError, match=r"for task 1, whose head needs \d+"):
        strategy.train(benchmark.train_stream[1])
    assert len(strategy.net.tasks) == 1


@pytest.mark.parametrize("start", ["random", "copies"])
@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["mlp", "concat", "grouped", "resnet9"])
def test_a_task_begins_at_every_budget_or_the_budget_is_refused(
    name: str, shared: float, start: str
) -> None:
    net = FireflyNet.from_module(backbone(name), torch.zeros(2, 1, 8, 8))
    net.freeze()
    plan = Plan(seed=0.5, shared=shared, start=start, grow_at=())
    reads, held = plan.reads(net), floats(net)
    full = task_floats(net, 3, plan.seed_widths(net), reads)
    refused, least = [], full
    for left in {*range(0, full, max(full // 12, 1)), full}:
        try:
            widths = fitting(net, 3, plan, reads, held + left)
        except ConfigurationError as error:
            assert f"leaves {left} for task 1" in str(error)
            refused.append(left)
            continue
        begun = copy.deepcopy(net)
        begun.begin_task(3, widths, reads)
        assert floats(begun) - held == task_floats(net, 3, widths, reads) <= left
        least = min(least, floats(begun) - held)
    assert refused and max(refused) < least


@pytest.mark.parametrize("cost", ["units", "flops"])
def test_floats_are_limited_whatever_growth_is_counted_in(cost: str) -> None:
    strategy = growing(plan=dataclasses.replace(PLAN, cost=cost, growth=1.0), budget=900)
    for experience in stream_of(TASKS).train_stream:
        strategy.train(experience)
        assert floats(strategy.net) <= 900
    assert strategy.firefly.events


@pytest.mark.parametrize(
    ("criterion", "grown"),
    [
        ("splitting", {0}),
        ("fast-splitting", {0}),
        ("signed-splitting", {0}),
        ("net2net", {0}),
        ("tiny", {0, 1}),
    ],
)
def test_a_task_without_units_is_learnt_on(criterion: str, grown: set[int]) -> None:
    plan = Plan(seed=0.5, growth=1.0, grow_at=(0.5,), criterion=criterion)
    strategy, begun = growing(plan=plan), []

    class Begun(SupervisedPlugin):
        def before_training_exp(self, template: Any, **kwargs: object) -> None:
            begun.append(sum(widths[-1] for widths in strategy.net.widths().values()))

    strategy.plugins.append(Begun())
    first, second = stream_of(TASKS[:2]).train_stream
    strategy.train(first)
    strategy.firefly.budget = floats(strategy.net) + 80
    strategy.train(second)
    assert begun[1] == 0 and all(task.frozen for task in strategy.net.tasks)
    assert {event["task"] for event in strategy.firefly.events} == grown


@pytest.mark.parametrize("name", ["mlp", "concat", "resnet9", "mobilenetv1"])
def test_costs_are_exact(name: str) -> None:
    net = FireflyNet.from_module(backbone(name), torch.zeros(2, 1, 8, 8))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        more = {space: 1 + 2 * (i % 3) for i, space in enumerate(net.growable_spaces())}
        size, operations = floats(net), flops(net)
        expected = growth_cost(net, more, "parameters")
        assert expected > sum(k * unit_cost(net, s, "parameters") for s, k in more.items())
        assert growth_cost(net, more, "units") == sum(more.values())
        added = growth_cost(net, more, "flops")
        for space, count in more.items():
            alone = unit_cost(net, space, "parameters")
            before = floats(net)
            edits.widen(net, space, 1, generator=generator)
            assert floats(net) - before == alone
            if count > 1:
                edits.widen(net, space, count - 1, generator=generator)
        assert floats(net) - size == expected
        assert flops(net) - operations == added
        net.freeze()
        widths = {space: 1 + i % 4 for i, space in enumerate(net.growable_spaces())}
        promised = task_floats(net, 5, widths, Plan().reads(net))
        size = floats(net)
        net.begin_task(5, widths, generator=generator)
        assert floats(net) - size == promised
