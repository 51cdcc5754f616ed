"""A task that begins from the older one whose features tell its classes apart best."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from growing_streams import PLAN, answers, drawn, growing, stream_of

from firefly_cl.continual.nearest import RIDGES, features_of, probe_accuracy
from firefly_cl.network import floats
from firefly_cl.network.layers import GrowableLayer

TASKS = [((0, 1), 24), ((2, 3), 24), ((4, 5), 24)]
NEAREST = dataclasses.replace(PLAN, start="nearest", shared=0.0, grow_at=())


def left_out(x: torch.Tensor, y: torch.Tensor, ridge: float) -> float:
    """Accuracy of ridge regressions with a free intercept, each fitted without one row."""
    spread = float(torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0))).mean())
    right = 0
    for row in range(len(x)):
        keep = torch.arange(len(x)) != row
        design = torch.cat([x[keep], torch.ones(len(x) - 1, 1).to(x)], 1)
        penalty = torch.diag(torch.tensor([ridge * spread] * x.shape[1] + [0.0]).to(x))
        targets = torch.nn.functional.one_hot(y[keep], 3).to(x)
        weights = torch.linalg.solve(design.T @ design + penalty, design.T @ targets)
        right += int((torch.cat([x[row], torch.ones(1).to(x)]) @ weights).argmax() == y[row])
    return right / len(x)


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_each_image_is_left_out_once(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(36) % 3
    x = torch.randn(36, 8, generator=generator, dtype=torch.float64) * noise
    x[:, :3] += torch.nn.functional.one_hot(y)
    expected = max(left_out(x, y, ridge) for ridge in RIDGES)
    assert probe_accuracy(x, y) == pytest.approx(expected)
    assert probe_accuracy(x, 7 * y + 2) == pytest.approx(expected)  # whatever they are called


def test_features_that_are_all_the_same_tell_nothing() -> None:
    y = torch.arange(30) % 3
    assert probe_accuracy(torch.ones(30, 5), y) <= 0.4
    assert probe_accuracy(torch.randn(30, 1, generator=torch.Generator().manual_seed(1)), y) < 0.8


@pytest.mark.parametrize("name", ["mlp", "resnet9"])
@pytest.mark.parametrize("with_recipe", [True, False])
def test_the_older_task_with_the_best_features_is_chosen(name: str, with_recipe: bool) -> None:
    changes = {} if with_recipe else {"recipe": None, "train_epochs": 2}
    strategy = growing(name, plan=NEAREST, **changes)
    first, second, third = stream_of(TASKS).train_stream
    strategy.train(first)
    strategy.train(second)
    net, (images, _) = strategy.net, drawn((0, 1), 8, seed=3)
    with torch.no_grad():  # a second task whose features are all the same
        for layer in net.layers.values():
            if isinstance(layer, GrowableLayer) and not layer.is_head:
                for parameter in layer.block(1).parameters():
                    parameter.zero_()
    net.forget_plans()
    older = [answers(strategy.model, task, images) for task in (0, 1)]
    strategy.train(third)
    (only, chosen) = strategy.firefly.events
    assert (only["task"], only["source"], len(only["probe_accuracies"])) == (1, 0, 1)
    assert (chosen["task"], chosen["source"]) == (2, 0)
    assert chosen["probe_accuracies"][0] > 0.8 and chosen["probe_accuracies"][1] <= 0.5
    for task in (0, 1):
        assert torch.equal(answers(strategy.model, task, images), older[task])


@pytest.mark.parametrize("source", [0, 1])
def test_it_begins_with_the_features_of_the_chosen_task(source: int) -> None:
    strategy = growing("mlp", plan=NEAREST)
    first, second, third = stream_of(TASKS).train_stream
    strategy.train(first)
    strategy.train(second)
    model = strategy.model.train()
    model.source = source
    model.adaptation(third)
    strategy.net.freeze()
    batch = drawn((4, 5), 20, seed=9)
    found = [features_of(strategy.net.eval(), task, batch[0]) for task in range(3)]
    torch.testing.assert_close(found[2], found[source])
    assert not torch.allclose(found[2], found[1 - source])


def test_a_budget_holds() -> None:
    strategy = growing("mlp", plan=NEAREST)
    budget = floats(strategy.net) * 2
    strategy = growing("mlp", plan=NEAREST, budget=budget)
    for experience in stream_of(TASKS).train_stream:
        strategy.train(experience)
    assert floats(strategy.net) <= budget
