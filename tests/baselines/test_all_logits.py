"""Answers among the classes of all tasks: one pass gives what every head gives alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from firefly_cl.benchmark.class_incremental import LOGIT, PROBABILITY, evaluate
from firefly_cl.scenarios import Scenario, normalise


@pytest.mark.parametrize("name", ["naive", "gdumb", "icarl"])
def test_one_pass_gives_the_logits_of_every_head(
    name: str, digits: Scenario, trained: Callable[..., Any]
) -> None:
    learner = trained(name, digits, recipe={"epochs": 2})
    images = digits.tasks[1].test.images
    together = learner.all_logits(images)
    assert len(together) == 2
    for task, logits in enumerate(together):
        torch.testing.assert_close(logits, learner.logits(task, images))
    rule, row = evaluate(learner, digits, 2)
    assert rule == LOGIT
    for task, told in enumerate(row):
        test = digits.tasks[task].test
        joint = torch.cat([learner.logits(t, test.images) for t in range(2)], dim=1)
        right = joint.argmax(1) == test.labels + (0 if task == 0 else joint.shape[1] // 2)
        assert told == pytest.approx(right.double().mean().item())


@pytest.mark.parametrize("name", ["ewc", "packnet", "individual", "firefly"])
def test_tasks_with_functions_of_their_own_compete_by_probability(
    name: str, digits: Scenario, trained: Callable[..., Any]
) -> None:
    learner = trained(name, digits, backbone="mlp-bn", recipe={"epochs": 2})
    rule, row = evaluate(learner, digits, 2)
    assert rule == PROBABILITY
    for task, told in enumerate(row):
        test = digits.tasks[task].test
        found = [learner.logits(t, test.images).double().softmax(1) for t in range(2)]
        right = torch.cat(found, dim=1).argmax(1) == test.labels + 2 * task
        assert told == pytest.approx(right.double().mean().item())


def test_icarl_answers_by_the_nearest_of_all_means(
    digits: Scenario, trained: Callable[..., Any]
) -> None:
    learner = trained("icarl", digits, recipe={"epochs": 2})
    test = digits.tasks[0].test
    net = learner.net.eval()
    with torch.no_grad():
        x = normalise(test.images, digits.mean, digits.std)
        features = functional.normalize(net.trunk(x), dim=1)
        means = torch.cat(list(net.means.buffers()))
        nearest = torch.cdist(features, means).argmin(1)
    right = (nearest == test.labels).double().mean().item()  # the first task's means come first
    assert evaluate(learner, digits, 2)[1][0] == pytest.approx(right)
