"""Views of an image: which there are, and that answers are their mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from firefly_cl.continual.answer import answer
from firefly_cl.continual.learner import Setup
from firefly_cl.continual.recipe import Recipe
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
    found = list(views.of(images, MEAN, STD))
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
        all_views = [net(view) for view in views.of(images, MEAN, STD)]
    torch.testing.assert_close(found, torch.stack(all_views).mean(0))
    again = answer(net, net, images[:2], image_shape=shape, mean=MEAN, std=STD, views=views)
    torch.testing.assert_close(again, found[:2])


def test_shifts_that_leave_nothing_are_refused_before_training(digits: Scenario) -> None:
    side = digits.image_shape[-1]
    assert Setup(digits, recipe=Recipe(shifted=side - 1)).views.shifted == side - 1
    with pytest.raises(ConfigurationError, match=f"give less than {side}"):
        Setup(digits, recipe=Recipe(shifted=side))
    with pytest.raises(ConfigurationError, match="0 or more"):
        Recipe(shifted=-1)
