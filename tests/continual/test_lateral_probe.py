"""Lateral heads in a stream: fitted when a task has been trained, frozen with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from growing_streams import PLAN, RECIPE, answers, drawn, growing, stream_of
from torch.nn import functional

from firefly_cl.continual.lateral_probe import LateralProbe, logistic_regression
from firefly_cl.continual.nearest import probe_accuracies
from firefly_cl.errors import ConfigurationError
from firefly_cl.network import floats
from firefly_cl.network.laterals import feature_count

TASKS = [((0, 1), 24), ((2, 3), 24), ((4, 5), 24)]
LATERAL = dataclasses.replace(
    PLAN, start="copies", shared=0.0, grow_at=(), lateral=LateralProbe(0.25)
)


def trained(tasks: Any = TASKS, **changes: Any) -> Any:
    strategy = growing(**{"plan": LATERAL, **changes})
    for experience in stream_of(tasks).train_stream:
        strategy.train(experience)
    return strategy


def test_the_regression_is_at_its_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    x = 3 + 2 * torch.randn(60, 7, generator=generator)
    x[:, 0] += labels
    x[:, 6] = 5.0  # tells nothing
    weight, bias = logistic_regression(x, labels, 3, 0.05)
    assert torch.equal(weight[:, 6], torch.zeros(3))
    deviation = x[:, :6].std(0, correction=0)

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        penalty = 0.05 * (weight[:, :6] * deviation).square().sum()
        return functional.cross_entropy(x @ weight.T + bias, labels) + penalty

    least = loss(weight, bias)
    for _ in range(20):
        nearby = weight + 0.01 * torch.randn(3, 7, generator=generator)
        assert loss(nearby, bias) > least
        assert loss(weight, bias + 0.01 * torch.randn(3, generator=generator)) > least


def test_every_task_reads_all_older_ones_and_answers_stay() -> None:
    strategy = growing(plan=LATERAL)
    stream = stream_of(TASKS)
    images = torch.stack([stream.test_stream[0].dataset[i][0] for i in range(8)])
    before: list[torch.Tensor] = []
    for task, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        lateral = strategy.net.lateral(task)
        assert (lateral.sources if lateral else []) == list(range(task))
        for old, expected in enumerate(before):
            assert torch.equal(answers(strategy.model, old, images), expected)
        before.append(answers(strategy.model, task, images))
    events = [event for event in strategy.firefly.events if "lateral" in event]
    assert [event["lateral"] for event in events] == [[0], [0, 1]]
    assert strategy.firefly.seconds["lateral"] > 0


def test_it_adds_its_weight_of_the_regression() -> None:
    plans = [dataclasses.replace(LATERAL, lateral=LateralProbe(w)) for w in (0.25, 0.5)]
    light, heavy = (trained(plan=plan).net for plan in plans)
    for source in (0, 1):
        one, two = (net.lateral(2).weights[str(source)] for net in (light, heavy))
        assert one.abs().max() > 0
        assert torch.allclose(2 * one, two)


def test_mirror_images_are_fitted_alike_where_answers_are_mirrored() -> None:
    net = trained(plan=dataclasses.replace(LATERAL, lateral=LateralProbe(0.0))).net
    images, labels = drawn((4, 5), 24, 20)
    probe = LateralProbe(0.25)

    def fitted(images: torch.Tensor, mirrored: bool) -> torch.Tensor:
        return probe.fit(net, [0, 1], [[images, labels]], mirrored=mirrored)[0][1]

    assert torch.allclose(fitted(images, True), fitted(images.flip(-1), True), atol=1e-5)
    assert not torch.allclose(fitted(images, False), fitted(images.flip(-1), False), atol=1e-3)


def test_a_weight_of_nothing_reads_nothing() -> None:
    net = trained(plan=dataclasses.replace(LATERAL, lateral=LateralProbe(0.0))).net
    assert not len(net.laterals)


def test_features_alone_tell_classes_apart() -> None:
    """With a weight that drowns the task's own logits, what is read must still be right."""
    plan = dataclasses.replace(LATERAL, lateral=LateralProbe(10.0, 0.01))
    strategy = trained(plan=plan, recipe=dataclasses.replace(RECIPE, epochs=1))
    experience = stream_of(TASKS).test_stream[2]
    images = torch.stack([item[0] for item in experience.dataset])
    labels = torch.tensor([int(item[1]) for item in experience.dataset])
    assert (answers(strategy.model, 2, images).argmax(1) == labels).float().mean() > 0.9


def test_the_nearest_tasks_that_the_budget_pays_are_read() -> None:
    net = trained(plan=dataclasses.replace(LATERAL, lateral=LateralProbe(0.0))).net
    net.tasks[-1].frozen = False
    images, labels = drawn((4, 5), 24, 20)
    batches = [[images, labels]]
    accuracies = probe_accuracies(net, batches)[:2]
    nearest = max(range(2), key=accuracies.__getitem__)
    one = net.tasks[-1].classes * (feature_count(net, 0) + 1)
    assert LateralProbe(0.25).sources(net, batches, None) == [0, 1]
    assert LateralProbe(0.25, tasks=1).sources(net, batches, None) == [nearest]
    assert LateralProbe(0.25).sources(net, batches, one) == [nearest]
    assert LateralProbe(0.25).sources(net, batches, one - 1) == []


def test_a_budget_is_kept() -> None:
    budget = floats(trained().net) - 1
    assert floats(trained(budget=budget).net) <= budget


@pytest.mark.parametrize("values", [(-1.0, 0.1), (0.25, 0.0), (float("nan"), 0.1), (0.25, 0.1, 0)])
def test_values_that_cannot_work_are_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigurationError, match="lateral"):
        LateralProbe(*values)
