"""PackNet: what a task owns by hand, and old answers that stay to the last bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from firefly_cl.baselines.packed import PackedNet
from firefly_cl.baselines.packnet import PacknetOptions, PruningPlugin
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup
from firefly_cl.scenarios import Scenario


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 1), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))  # type: ignore[no-any-return]


def test_the_largest_free_weights_are_kept(
    three_digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    net = PackedNet(OneLayer())
    scenario = dataclasses.replace(three_digits, cut_into=None)
    plugin = PruningPlugin(setup_for(scenario, recipe={"epochs": 3}), PacknetOptions())
    strategy: Any = SimpleNamespace(model=SimpleNamespace(net=net))
    weights = net.trunk.layer.weight.data
    weights.copy_(torch.tensor([[3.0, -6.0, 1.0, -2.0, 5.0, 4.0]]))
    plugin.before_training_exp(strategy)
    plugin.after_training_epoch(strategy)
    assert net.owner("layer.weight").sum() == 0  # the last of three epochs is for what is kept
    plugin.after_training_epoch(strategy)
    assert net.owner("layer.weight").tolist() == [[0, 1, 0, 0, 1, 0]]
    assert weights.tolist() == [[0, -6, 0, 0, 5, 0]]
    weights.copy_(torch.arange(6.0))  # a step that changes everything
    plugin.after_update(strategy)
    assert weights.tolist() == [[0, 1, 0, 0, 4, 0]]

    plugin._number = 1
    plugin._hold(net, owner=0)
    weights.copy_(torch.tensor([[3.0, 9.0, 1.0, -2.0, 9.0, -4.0]]))
    plugin.after_update(strategy)
    assert weights.tolist() == [[3, 1, 1, -2, 4, -4]]  # older weights are back
    plugin._prune(net)
    assert net.owner("layer.weight").tolist() == [[2, 1, 0, 0, 1, 2]]
    plugin._number = 2
    weights.copy_(torch.where(net.owner("layer.weight") == 0, 7.0, weights))
    plugin._prune(net)
    assert net.owner("layer.weight").tolist() == [[2, 1, 3, 3, 1, 2]]


@pytest.mark.parametrize(
    ("prune_proportion", "expected"), [("equal", [34, 33, 33, 0]), ("0.75", [25, 19, 14, 11])]
)
def test_shares(prune_proportion: str, expected: list[int]) -> None:
    options = PacknetOptions(prune_proportion)
    free, kept = 100, []
    tasks = 3 if prune_proportion == "equal" else 4
    for task in range(4):
        kept.append(options.kept(free, tasks - task) if free else 0)
        free -= kept[-1]
    assert kept == expected


@pytest.mark.parametrize(
    ("backbone", "width", "recipe"),
    [
        ("mlp", 0.25, {}),
        ("resnet9", 0.1, {"precision": "bfloat16", "channels_last": True, "epochs": 3}),
        ("mlp-bn", 0.25, {"optimizer": "adamw", "learning_rate": 0.01, "mixup": 0.4}),
    ],
)
def test_old_answers_stay_to_the_last_bit(
    backbone: str,
    width: float,
    recipe: dict[str, Any],
    three_digits: Scenario,
    setup_for: Callable[..., Setup],
) -> None:
    setup = setup_for(three_digits, backbone=backbone, width=width, recipe=recipe)
    learner: Any = STRATEGIES.get("packnet")(setup)
    images = [task.test.images for task in three_digits.tasks]
    ended: list[Tensor] = []
    owned: list[dict[str, Tensor]] = []
    for number, experience in enumerate(three_digits.benchmark().train_stream):
        learner.train(experience)
        ended.append(learner.logits(number, images[number]))
        owned.append({n: learner.net.owner(n).clone() for n, _ in learner.net.packed()})
        for task in range(number):
            assert torch.equal(learner.logits(task, images[task]), ended[task])
            for name, owner in owned[task].items():
                held = owner > 0
                assert torch.equal(owned[number][name][held], owner[held])
    for name, _ in learner.net.packed():
        counts = learner.net.owner(name).flatten().bincount(minlength=4)
        share = counts.sum() / 5  # of the whole stream's tasks, of which two are to come
        assert (counts - share * torch.tensor([2, 1, 1, 1])).abs().max() <= 3


def test_a_task_sees_its_weights_and_older_ones(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    learner: Any = STRATEGIES.get("packnet")(setup_for(digits, recipe={"epochs": 1}))
    stream = digits.benchmark().train_stream
    for experience in stream:
        learner.train(experience)
    images = digits.tasks[0].test.images
    x = ((images.float() / 255 - digits.mean[0]) / digits.std[0]).flatten(1)
    for task in (0, 1):
        h = x
        own = dict(learner.net.statistics[str(task)].named_buffers())
        for layer in ("hidden.0", "hidden.2"):
            weight = learner.net.trunk.get_parameter(f"{layer}.weight").detach().clone()
            weight[learner.net.owner(f"{layer}.weight") > task + 1] = 0
            bias = own[f"{layer}.bias".replace(".", "_")]
            h = functional.relu(functional.linear(h, weight, bias))
        expected = learner.net.heads[str(task)](h).detach()
        torch.testing.assert_close(learner.logits(task, images), expected)


@pytest.mark.parametrize("name", ["packnet", "wsn"])
def test_weights_are_unpacked_again_where_they_changed_only(
    name: str, three_digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    learner: Any = STRATEGIES.get(name)(setup_for(three_digits, recipe={"epochs": 1}))
    for experience in three_digits.benchmark().train_stream:
        learner.train(experience)
    net, unpacked = learner.net, []
    used = net.used
    net.used = lambda task: unpacked.append(task) or used(task)
    images = three_digits.tasks[0].test.images[:5]
    before = learner.logits(0, images)
    assert torch.equal(learner.logits(0, images), before) and unpacked == [0]
    learner.logits(1, images)
    assert torch.equal(learner.logits(0, images), before) and unpacked == [0, 1, 0]
    with torch.no_grad():
        for _, weights in net.packed():
            weights *= 2
    assert not torch.equal(learner.logits(0, images), before) and unpacked == [0, 1, 0, 0]
