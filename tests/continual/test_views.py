"""Views of an image: which there are, and that answers are their mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from growing_streams import RECIPE
from torch import Tensor, nn

from firefly_cl.continual.answer import answer
from firefly_cl.continual.learner import Setup
from firefly_cl.continual.loading import Pixels
from firefly_cl.continual.recipe import Recipe
from firefly_cl.continual.strategy import FireflyStrategy
from firefly_cl.continual.views import Views
from firefly_cl.errors import ConfigurationError
from firefly_cl.scenarios import Scenario, normalise

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (5, 3, 6, 6), dtype=torch.uint8, generator=seeded(1))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(images: Tensor, down: int, right: int) -> Tensor:
    """Images whose pixels stand `down` and `right` of where they were; what comes in is black."""
    height, width = images.shape[-2:]
    result = torch.zeros_like(images)
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[..., y, x] = images[..., y - down, x - right]
    return result


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("shifted", [0, 1, 2])
def test_views_are_the_image_and_its_shifts_each_once(
    images: Tensor, mirrored: bool, shifted: int
) -> None:
    views = Views(mirrored, shifted)
    steps = {0, shifted, -shifted}
    expected = [moved(images, down, right) for down in steps for right in steps]
    expected += [view.flip(-1) for view in expected] if mirrored else []
    found = list(views.of(normalise(images, MEAN, STD), MEAN, STD))
    assert len(found) == len(views) == len(expected)
    assert torch.equal(found[0], normalise(images, MEAN, STD))
    wanted = {normalise(view, MEAN, STD).numpy().tobytes() for view in expected}
    assert {view.numpy().tobytes() for view in found} == wanted
    assert len(wanted) == len(expected)


def test_an_answer_is_the_mean_of_the_logits_of_all_views(images: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    views = Views(mirrored=True, shifted=2)
    shape = images.shape[1:]
    found = answer(net, net, images, image_shape=shape, mean=MEAN, std=STD, views=views)
    with torch.no_grad():
        inputs = normalise(images, MEAN, STD)
        all_views = [net(view) for view in views.of(inputs, MEAN, STD)]
    torch.testing.assert_close(found, torch.stack(all_views).mean(0))
    again = answer(net, net, images[:2], image_shape=shape, mean=MEAN, std=STD, views=views)
    torch.testing.assert_close(again, found[:2])


@pytest.mark.parametrize(("most", "sizes"), [(1, [5] * 18), (12, [10] * 9), (256, [90])])
def test_views_are_asked_about_in_batches_of_a_size(
    images: Tensor, most: int, sizes: list[int]
) -> None:
    views, seen = Views(mirrored=True, shifted=2), []

    def forward(x: Tensor) -> Tensor:
        assert x.is_contiguous(memory_format=torch.channels_last)
        seen.append(len(x))
        return x.flatten(1).cumsum(1)

    inputs = normalise(images, MEAN, STD)
    found = views.answer(forward, inputs, MEAN, STD, most, torch.channels_last)
    assert seen == sizes
    each = [view.flatten(1).cumsum(1) for view in views.of(inputs, MEAN, STD)]
    torch.testing.assert_close(found, torch.stack(each).mean(0))


class Outputs(SupervisedPlugin):
    """What the strategy answered in evaluation, and the inputs that it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def after_eval_iteration(self, strategy: Any, **kwargs: object) -> None:
        self.inputs.append(strategy.mb_x)
        self.outputs.append(strategy.mb_output)


@pytest.mark.parametrize("flip", [False, True])
def test_avalanches_evaluation_answers_by_the_views_of_the_recipe(
    digits: Scenario, flip: bool
) -> None:
    outputs, pixels = Outputs(), Pixels(digits.mean, digits.std, flip)
    recipe = replace(RECIPE, mirrored=True, shifted=1)
    strategy = FireflyStrategy(
        model=nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)),
        example_input=torch.zeros(2, 1, 8, 8),
        recipe=recipe,
        pixels=pixels,
        plugins=[outputs],
        evaluator=None,
    )
    benchmark = digits.benchmark()
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream[:1])
    views = Views(flip, 1)
    for x, found in zip(outputs.inputs, outputs.outputs, strict=True):
        with torch.no_grad():
            each = [strategy.net(view) for view in views.of(x, pixels.mean, pixels.std)]
        assert len(each) == (18 if flip else 9)
        torch.testing.assert_close(found, torch.stack(each).mean(0))


def test_shifts_that_leave_nothing_are_refused_before_training(digits: Scenario) -> None:
    side = digits.image_shape[-1]
    assert Setup(digits, recipe=Recipe(shifted=side - 1)).views.shifted == side - 1
    with pytest.raises(ConfigurationError, match=f"give less than {side}"):
        Setup(digits, recipe=Recipe(shifted=side))
    with pytest.raises(ConfigurationError, match="0 or more"):
        Recipe(shifted=-1)
