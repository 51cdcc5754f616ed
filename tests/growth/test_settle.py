"""The winners of a growth step go only as far as the loss falls."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from growing_nets import assert_same_state, images, net_of, seeded, snapshot, train_steps
from torch import Tensor

from firefly_cl.errors import ConfigurationError, DivergenceError
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.criterion import Model, criterion_of
from firefly_cl.growth.settle import settle
from firefly_cl.network import FireflyNet
from firefly_cl.network.modes import evaluation

REACH = {"splitting": 4.0, "fast-splitting": 4.0, "signed-splitting": 4.0, "tiny": 16.0}
"""Of each criterion that scores units one by one, a reach that is too long."""

Batch = tuple[Tensor, Tensor]


def loss(model: Model, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def loss_of(net: FireflyNet, batch: Batch) -> float:
    with torch.no_grad(), evaluation(net):
        return float(loss(net, batch))


@pytest.mark.parametrize("name", REACH)
def test_too_long_a_reach_is_cut_before_it_raises_the_loss(name: str) -> None:
    batch = (images(24), torch.arange(24) % 3)
    found = []
    for halvings in (10, 0):
        net = net_of("vgg19" if name != "tiny" else "resnet9")
        train_steps(net, *batch, steps=3)
        before = loss_of(net, batch)
        criterion = criterion_of(name, {"reach": REACH[name], "halvings": halvings})
        growth = criterion.grow(net, [batch], loss, Budget(6), seeded())
        assert growth.kept
        found.append((growth.gain, before - loss_of(net, batch)))
    (promised, obtained), (at_once, lost) = found
    assert 0 < promised < at_once
    assert lost < 0 < obtained


@pytest.mark.parametrize("name", REACH)
def test_a_negative_number_of_halvings_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"halvings of .* must be 0 or more"):
        criterion_of(name, {"halvings": -1})


def settled(value: Callable[[float], float], halvings: int) -> float:
    """What a reach of 1 is settled to where the loss of the grown network is value(reach)."""
    net = net_of("mlp")
    before = snapshot(net)
    reaches: dict[int, float] = {}

    def commit(grown: FireflyNet, reach: float) -> None:
        reaches[id(grown)] = reach
        for parameter in grown.parameters():
            parameter.zero_()

    def found(grown: Model, batch: None) -> Tensor:
        return torch.tensor(value(reaches[id(grown)]))

    reach = settle(net, [None], found, 1.0, halvings, commit)
    assert_same_state(net, before)
    return reach


def test_the_reach_is_halved_up_to_the_first_rise_of_the_loss() -> None:
    assert settled(lambda reach: (reach - 0.2) ** 2, 6) == 0.25
    assert settled(lambda reach: reach, 3) == 0.125
    assert settled(lambda reach: -reach, 3) == 1.0
    assert settled(lambda reach: reach, 0) == 1.0


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_a_reach_whose_loss_is_not_finite_is_too_long(broken: float) -> None:
    assert settled(lambda reach: broken if reach > 0.3 else -reach, 6) == 0.25
    with pytest.raises(DivergenceError, match=r"at any reach down to 0\.125: lower"):
        settled(lambda reach: broken, 3)
