"""Elastic weight consolidation against a quadratic by hand and against Avalanche's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avalanche.training.plugins import EWCPlugin
from avalanche.training.utils import ParamData, copy_params_dict
from torch import nn
from torch.utils.data import TensorDataset

from firefly_cl.baselines.ewc import ConsolidationPlugin
from firefly_cl.baselines.multihead import pixels_of
from firefly_cl.baselines.springs import Springs
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup
from firefly_cl.continual.loading import Pixels
from firefly_cl.scenarios import Scenario, normalise
from firefly_cl.scenarios.stream import dataset_of

PIXELS = Pixels((0.5,), (0.5,))


def one_weight(value: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_penalty_by_hand() -> None:
    springs = Springs(3.0)
    springs.add({"weight": torch.tensor([[2.0]])}, one_weight(1.0))
    springs.add({"weight": torch.tensor([[6.0]])}, one_weight(-1.0))
    plugin = ConsolidationPlugin(springs, PIXELS)
    # At w = 2: 2 (2 - 1)^2 + 6 (2 + 1)^2 = 56; its slope 2*2*1 + 2*6*3 = 40.
    model = one_weight(2.0)
    loss = torch.ones(1)
    strategy = SimpleNamespace(model=model, loss=loss, clock=None)
    plugin.before_backward(strategy)
    assert strategy.loss.item() == pytest.approx(1 + 3 * 56)
    strategy.loss.backward()
    assert model.weight.grad.item() == pytest.approx(3 * 40)
    springs.pull(model)  # the same gradient, once more
    assert model.weight.grad.item() == pytest.approx(2 * 3 * 40)


def test_penalty_equals_avalanches_separate_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    ours = ConsolidationPlugin(Springs(0.7), PIXELS)
    theirs = EWCPlugin(0.7, mode="separate")
    for task in range(3):
        with torch.no_grad():
            for weights in model.parameters():
                weights.add_(torch.randn_like(weights))
        importances = {name: torch.rand_like(w) for name, w in model.named_parameters()}
        importances["0.bias"][0] = 0.0  # weights that matter to no task
        ours.springs.add(importances, model)
        theirs.importances[task] = {
            name: ParamData(name, init_tensor=values) for name, values in importances.items()
        }
        theirs.saved_params[task] = copy_params_dict(model)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights))
    losses, gradients = [], []
    for plugin in (ours, theirs):
        state: Any = SimpleNamespace(
            model=model,
            loss=torch.zeros(1),
            device=torch.device("cpu"),
            clock=SimpleNamespace(train_exp_counter=3),
        )
        plugin.before_backward(state)
        losses.append(state.loss.detach())
        gradients.append(torch.autograd.grad(state.loss, list(model.parameters())))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_stiff_springs_do_not_overshoot() -> None:
    rate = 0.1
    springs = Springs(1e6, rate)
    springs.add({"weight": torch.tensor([[5.0]])}, one_weight(1.0))
    model = one_weight(2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True)
    for _ in range(200):
        optimizer.zero_grad()
        (springs.strength * springs.penalty(model)).backward()
        optimizer.step()
    assert model.weight.item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"head": "single"}], ids=["heads", "single head"])
@pytest.mark.parametrize("backbone", ["mlp-bn", "resnet9"])
def test_importances_are_avalanches_of_batches_of_one_image(
    backbone: str, options: dict[str, str], digits: Scenario, trained: Callable[..., Any]
) -> None:
    recipe = {"epochs": 1, "mixup": 0.4}
    learner = trained("replay", digits, backbone=backbone, recipe=recipe, options=options)
    task = digits.tasks[1].train
    some = replace(task, images=task.images[::5], labels=task.labels[::5])
    strategy = SimpleNamespace(
        model=learner.model, experience=SimpleNamespace(dataset=dataset_of(some))
    )
    plugin = ConsolidationPlugin(Springs(1.0), pixels_of(learner.setup))
    found = plugin.importances_of(strategy)
    assert not any("heads" in name for name in found)
    inputs = normalise(some.images, digits.mean, digits.std)
    theirs = EWCPlugin(1.0).compute_importances(
        learner.model,
        nn.CrossEntropyLoss(),
        learner.strategy.optimizer,
        TensorDataset(inputs, some.labels, some.task_of_each()),
        torch.device("cpu"),
        batch_size=1,
    )
    for name, importance in found.items():
        # float32: an image's ReLU may be on this side of its kink here, and on the other there
        assert (importance - theirs[name].data).norm() < 1e-2 * theirs[name].data.norm()
    assert max(float(importance.max()) for importance in found.values()) > 1e-3


def test_a_strong_penalty_keeps_the_old_function(
    digits: Scenario, setup_for: Callable[..., Setup], trained: Callable[..., Any]
) -> None:
    images = digits.tasks[0].test.images
    drift, final = {}, {}
    for strength in ("0", "10000"):
        setup = setup_for(digits, options={"ewc_lambda": strength}, recipe={"epochs": 10})
        learner = STRATEGIES.get("ewc")(setup)
        stream = digits.benchmark().train_stream
        learner.train(stream[0])
        before = learner.logits(0, images)
        learner.train(stream[1])
        final[strength] = learner.logits(0, images)
        drift[strength] = (final[strength] - before).norm().item()
    assert drift["10000"] < 0.5 * drift["0"]
    naive = trained("naive", digits, recipe={"epochs": 10})
    assert torch.equal(final["0"], naive.logits(0, images))
