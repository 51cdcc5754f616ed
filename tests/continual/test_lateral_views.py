"""Where answers are means over views, lateral heads are asked about unshifted ones alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from growing_streams import RECIPE
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, load_logits
from firefly_cl.continual.views import Views
from firefly_cl.network import FireflyNet
from firefly_cl.network.laterals import lateral_factor
from firefly_cl.scenarios import Scenario, images_of, normalise

OPTIONS = {"start": "copies", "shared": "0", "grow_at": "", "lateral": "0.5"}

Trained = Callable[[bool], Any]


@pytest.fixture
def trained(digits: Scenario) -> Trained:
    """A learner of two tasks whose answers are means over nine views, or eighteen."""

    def train(mirrored: bool) -> Any:
        scenario = replace(digits, flip=mirrored)
        recipe = replace(RECIPE, mirrored=mirrored, shifted=1)
        learner = STRATEGIES.get("firefly")(
            Setup(scenario, backbone="resnet9", constant_width=4, recipe=recipe, options=OPTIONS)
        )
        for experience in scenario.benchmark().train_stream[:2]:
            learner.train(experience)
        return learner

    return train


def images(scenario: Scenario) -> Tensor:
    return images_of(scenario.benchmark().test_stream[1].dataset).images[:5]


@torch.no_grad()
def by_hand(net: FireflyNet, task: int, inputs: list[Tensor], unshifted: int) -> Tensor:
    """The mean of the task's own logits, and of those of its lateral head over the first views."""
    with lateral_factor(net.eval(), 0.0):
        own = [net(view, task) for view in inputs]
    whole = [net(view, task) for view in inputs[:unshifted]]
    lateral = [both - alone for both, alone in zip(whole, own, strict=False)]
    return torch.stack(own).mean(0) + torch.stack(lateral).mean(0)


@pytest.mark.parametrize("mirrored", [False, True])
def test_answers_have_the_lateral_logits_of_unshifted_views(
    trained: Trained, digits: Scenario, mirrored: bool
) -> None:
    learner, views = trained(mirrored), Views(mirrored, 1)
    plain = normalise(images(digits), digits.mean, digits.std)
    inputs = list(views.of(plain, digits.mean, digits.std))
    for task in (0, 1):
        expected = by_hand(learner.net, task, inputs, 2 if mirrored else 1)
        torch.testing.assert_close(learner.logits(task, images(digits)), expected)
    everywhere = by_hand(learner.net, 1, inputs, len(inputs))
    assert not torch.allclose(expected, everywhere, atol=1e-3)


@pytest.mark.parametrize("mirrored", [False, True])
def test_operations_are_those_of_an_answer(
    trained: Trained, digits: Scenario, mirrored: bool
) -> None:
    learner = trained(mirrored)
    for task in (0, 1):
        with FlopCounterMode(display=False) as counter:
            learner.logits(task, images(digits)[:1])
        assert learner.flops(task) == counter.get_total_flops()


def test_answers_stay_and_files_give_the_same(
    trained: Trained, digits: Scenario, tmp_path: Path
) -> None:
    learner = trained(True)
    before = [learner.logits(task, images(digits)) for task in (0, 1)]
    learner.train(digits.benchmark().train_stream[2])
    learner.save(tmp_path)
    saved = load_logits(tmp_path)
    for task, logits in enumerate(before):
        assert torch.equal(learner.logits(task, images(digits)), logits)
        assert torch.equal(saved(task, images(digits)), logits)


class Outputs(SupervisedPlugin):
    """What Avalanche's evaluation answered."""

    def after_eval_iteration(self, strategy: Any, **kwargs: object) -> None:
        self.outputs = strategy.mb_output


@pytest.mark.parametrize("mirrored", [False, True])
def test_avalanches_evaluation_answers_so_too(
    trained: Trained, digits: Scenario, mirrored: bool
) -> None:
    learner, outputs = trained(mirrored), Outputs()
    learner.strategy.plugins.insert(0, outputs)
    experience = digits.benchmark().test_stream[1]
    learner.strategy.eval([experience])
    expected = learner.logits(1, images_of(experience.dataset).images)
    torch.testing.assert_close(outputs.outputs, expected[-len(outputs.outputs) :])
