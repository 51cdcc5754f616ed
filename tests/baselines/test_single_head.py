"""One softmax over the classes of all tasks: against concatenated heads, and what it is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.training import ACECriterion
from test_rehearsal import Step, images
from torch import Tensor
from torch.nn import functional

from firefly_cl.baselines.der import DarkPlugin
from firefly_cl.baselines.er_ace import AsymmetricPlugin
from firefly_cl.baselines.exemplars import Exemplars
from firefly_cl.benchmark.class_incremental import evaluate
from firefly_cl.continual.learner import Learner, Setup
from firefly_cl.errors import ConfigurationError
from firefly_cl.scenarios import Scenario

SINGLE = ["naive", "lwf", "replay", "der", "er-ace", "agem", "gem", "icarl", "gdumb", "joint"]

FIRST = torch.tensor([0, 2, 6])  # where each task's classes begin among all: tasks of 2, 4 and 3


@pytest.fixture
def step(digits: Scenario, setup_for: Callable[..., Setup]) -> Step:
    torch.manual_seed(0)
    made = Step(setup_for(digits), Exemplars(20))
    made.model.single_head = True
    made.strategy.mb_output = made.model(made.x, 2)
    return made


def one_head(step: Step, x: Tensor) -> Tensor:
    """Logits (B, 9) of all classes in their order."""
    return torch.cat(step.model.net.every_head(x), dim=1)


def test_a_row_begins_with_the_classes_of_its_task(step: Step) -> None:
    x = torch.cat([step.x[:1], step.memory_x[:1], step.memory_x[-1:]])
    tasks = torch.tensor([2, 0, 1])
    order = [[6, 7, 8, 0, 1, 2, 3, 4, 5], list(range(9)), [2, 3, 4, 5, 0, 1, 6, 7, 8]]
    expected = one_head(step, x).gather(1, torch.tensor(order))
    torch.testing.assert_close(step.model(x, tasks), expected)
    torch.testing.assert_close(step.model(x[:1], 2), expected[:1])
    step.model.eval()
    assert step.model(x[:1], 2).shape == (1, 3)  # evaluation is told the task


def test_further_tasks_only_make_rows_longer(step: Step) -> None:
    before = step.model(step.memory_x, step.memory_tasks)
    step.model.add_head(3, 5)
    after = step.model(step.memory_x, step.memory_tasks)
    assert after.shape[1] == 14
    torch.testing.assert_close(after[:, :9], before)


def test_the_loss_is_that_of_one_softmax(step: Step) -> None:
    x, tasks = (
        torch.cat([step.x, step.memory_x]),
        torch.cat([torch.full((8,), 2), step.memory_tasks]),
    )
    labels = torch.cat([step.y, step.memory_y])
    found = step.strategy._criterion(step.model(x, tasks), labels)
    expected = functional.cross_entropy(one_head(step, x), labels + FIRST[tasks])
    torch.testing.assert_close(found, expected)
    weights = [head.weight for head in step.model.net.heads.values()]
    for gradients in zip(
        torch.autograd.grad(found, weights, retain_graph=True),
        torch.autograd.grad(expected, weights),
        strict=True,
    ):
        torch.testing.assert_close(*gradients)


def test_er_ace_equals_avalanches(
    step: Step, digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    exemplars = Exemplars(20, "class")
    plugin = AsymmetricPlugin(setup_for(digits), exemplars)
    step = Step(setup_for(digits), exemplars)
    step.model.single_head = True
    step.recall_for(plugin)
    strategy = step.strategy
    strategy.mb_y = step.y % 2
    step.forward_with(plugin)
    plugin.after_forward(strategy)
    strategy.loss = strategy._criterion(strategy.mb_output, strategy.mb_y)
    plugin.before_backward(strategy)
    expected = ACECriterion()(
        one_head(step, step.x),
        strategy.mb_y + FIRST[2],
        one_head(step, step.memory_x),
        step.memory_y + FIRST[step.memory_tasks],
    )
    torch.testing.assert_close(strategy.loss, expected)


def test_der_compares_the_classes_that_there_were(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    """Images of task 0 were answered among 2 classes, those of task 1 among 6."""
    setup, exemplars = setup_for(digits), Exemplars(20)
    plugin = DarkPlugin(setup, exemplars, alpha=1.0, beta=0.0)
    step = Step(setup, Exemplars(20))
    step.model.single_head = True
    generator = torch.Generator().manual_seed(3)
    stored = [torch.randn(10, classes, generator=generator) for classes in (2, 6)]
    for task, (classes, logits) in enumerate(zip((2, 4), stored, strict=True)):
        exemplars.add(images(10, classes, task), logits)
    step.recall_for(plugin)
    step.forward_with(plugin)
    step.strategy.loss = torch.zeros(())
    plugin.before_backward(step.strategy)
    squares = []
    answers = one_head(step, step.memory_x)
    order = {0: [0, 1], 1: [2, 3, 4, 5, 0, 1]}
    for row, task, number in zip(answers, step.memory_tasks.tolist(), step.chosen, strict=True):
        known = stored[task][number % 10]
        squares += list((row[order[task]] - known).square())
    torch.testing.assert_close(step.strategy.loss, torch.stack(squares).mean())


@pytest.mark.parametrize("name", SINGLE)
def test_every_strategy_trains_with_it(
    name: str, digits: Scenario, trained: Callable[..., Learner]
) -> None:
    """Task-incremental answers are as good as ever, and classes compete better."""
    options = {"head": "single"}
    learner = trained(name, digits, options=options, recipe={"mixup": 0.2})
    rule, row = evaluate(learner, digits, 2)
    found = [value for value in row if value is not None]
    assert rule == "logit" and len(found) == 2
    test = digits.tasks[1].test
    right = learner.logits(1, test.images).argmax(1) == test.labels
    assert right.float().mean() > 0.85
    assert found[1] <= right.float().mean()


def test_a_single_head_tells_classes_of_different_tasks_apart(
    three_digits: Scenario, trained: Callable[..., Learner]
) -> None:
    """Replay with several heads and with one: asked without the task, the one is far better."""
    means, recipe = {}, {"batch_size": 16}
    for head in ("multi", "single"):
        learner = trained("replay", three_digits, options={"head": head}, recipe=recipe)
        row = evaluate(learner, three_digits, 3)[1]
        means[head] = sum(value for value in row if value is not None) / 3
    assert means["single"] > 0.85 > means["multi"]


def test_er_ace_learns_the_newest_classes_too(
    three_digits: Scenario, trained: Callable[..., Learner]
) -> None:
    """From images that it remembers from the beginning of their task: alone, they never compete."""
    recipe = {"batch_size": 16}
    learner = trained("er-ace", three_digits, options={"head": "single"}, recipe=recipe)
    row = evaluate(learner, three_digits, 3)[1]
    assert min(value for value in row if value is not None) > 0.7


def test_another_head_is_an_error(digits: Scenario, trained: Callable[..., Any]) -> None:
    for name in SINGLE:
        with pytest.raises(ConfigurationError, match="head is 'double'; it must be one of multi, "):
            trained(name, digits, options={"head": "double"})
