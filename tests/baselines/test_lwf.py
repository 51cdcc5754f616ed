"""Learning without forgetting against Avalanche's penalty, and on mixed images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.training import LearningWithoutForgetting
from torch import Tensor

from firefly_cl.baselines.lwf import DistillationPlugin, LwfOptions
from firefly_cl.baselines.multihead import MultiHead, blueprint_of
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup
from firefly_cl.scenarios import Scenario


def test_distillation_equals_avalanches(digits: Scenario, setup_for: Callable[..., Setup]) -> None:
    model = MultiHead(blueprint_of(setup_for(digits)).build(0), 0)
    for task, classes in enumerate((2, 4, 3)):
        model.net.add_head(task, classes, torch.Generator().manual_seed(task))
    ours = DistillationPlugin(LwfOptions(alpha=0.7, temperature=3.0))
    theirs = LearningWithoutForgetting(alpha=0.7, temperature=3.0)
    theirs.prev_model = copy.deepcopy(model)
    theirs.prev_classes_by_task.update({0: {0, 1}, 1: {0, 1, 2, 3}})
    state: Any = SimpleNamespace(model=model, experience=SimpleNamespace(task_labels=[2]))
    ours.before_training_exp(state)
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    x = torch.randn(12, 1, 8, 8)
    out = model(x, torch.full((12,), 2))
    state.mb_x, state.loss = x, torch.zeros(())
    ours.before_backward(state)
    expected = theirs(x, out, model)
    torch.testing.assert_close(state.loss, expected)
    used = [w for name, w in model.named_parameters() if ".heads.2." not in name]
    torch.testing.assert_close(
        torch.autograd.grad(state.loss, used), torch.autograd.grad(expected, used)
    )
    ours.after_training_exp(state)
    assert not model.net.trunk._forward_hooks


def test_a_single_head_keeps_how_older_tasks_rank(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    x, found = torch.randn(12, 1, 8, 8), {}
    for head in ("multi", "single"):
        model = MultiHead(blueprint_of(setup_for(digits)).build(0), 0)
        for task, classes in enumerate((2, 4, 3)):
            model.net.add_head(task, classes, torch.Generator().manual_seed(task))
        plugin = DistillationPlugin(LwfOptions(head=head, temperature=2.0))
        state: Any = SimpleNamespace(model=model, experience=SimpleNamespace(task_labels=[2]))
        plugin.before_training_exp(state)
        before = torch.cat(model.net.every_head(x)[:2], 1)
        with torch.no_grad():
            model.net.heads["0"].bias += 5.0
        after = torch.cat(model.net.every_head(x)[:2], 1)
        features = model.net.trunk(x)
        found[head] = float(plugin.distillation(model.net.heads, features, x))
        plugin.after_training_exp(state)
    old, new = ((logits / 2).softmax(1) for logits in (before, after))
    expected = float((old * (old / new).log()).sum(1).mean())
    assert abs(found["single"] - expected) < 1e-5 < 0.1 < expected
    assert found["multi"] < 1e-6  # the classes of each task rank as before


def test_both_networks_answer_the_mixed_images(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    recipe = {"epochs": 1, "mixup": 0.4, "cutmix": 0.5}
    learner: Any = STRATEGIES.get("lwf")(setup_for(digits, recipe=recipe))
    plugin = learner.strategy.plugins[0]
    stream = digits.benchmark().train_stream
    plain, shares = plugin.distillation, []

    def spy(heads: Any, features: Tensor, x: Tensor) -> Tensor:
        torch.testing.assert_close(learner.net.trunk(x), features)
        shares.append(learner.strategy._criterion.mixture.share)
        return plain(heads, features, x)

    plugin.distillation = spy
    learner.train(stream[0])
    assert not shares  # nothing to distil yet
    before = learner.logits(0, digits.tasks[0].test.images)
    learner.train(stream[1])
    assert len(shares) > 3 and any(0 < share < 1 for share in shares)
    assert plugin.teacher is None
    assert not torch.equal(learner.logits(0, digits.tasks[0].test.images), before)


def test_the_teacher_does_not_move(digits: Scenario, setup_for: Callable[..., Setup]) -> None:
    learner: Any = STRATEGIES.get("lwf")(
        setup_for(digits, recipe={"epochs": 1}, backbone="mlp-bn", options={"alpha": "3"})
    )
    plugin = learner.strategy.plugins[0]
    stream = digits.benchmark().train_stream
    learner.train(stream[0])
    before = {name: values.clone() for name, values in learner.net.state_dict().items()}
    finish = plugin.after_training_exp

    def check(strategy: Any, **kwargs: object) -> None:
        taught = plugin.teacher.state_dict()
        assert all(torch.equal(taught[name], values) for name, values in before.items())
        finish(strategy)

    plugin.after_training_exp = check
    learner.train(stream[1])
    assert not torch.equal(
        learner.net.state_dict()["trunk.hidden.0.weight"], before["trunk.hidden.0.weight"]
    )
