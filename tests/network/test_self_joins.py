"""A unit that is joined with itself grows place by place, or is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from growing_nets import CHANNELS, SIDE, images, seeded, shake
from odd_nets import Forward, Parts, pooled
from torch import nn

from firefly_cl.errors import UnsupportedOperation
from firefly_cl.network import FireflyNet, extract
from firefly_cl.network.edits import split, widen

SELF_JOINED: dict[str, Forward] = {
    "as it is": lambda m, y: m.head2(pooled(torch.cat([y, y.sigmoid()], 1))),
    "behind a norm and a depthwise layer": lambda m, y: m.head2(
        pooled(m.each(F.relu(m.norm2(torch.cat([y, y], 1)))))
    ),
    "flattened, joined with itself again": lambda m, y: (
        lambda z: m.head256(torch.cat([z, torch.tanh(z)], 1).flatten(1))
    )(torch.cat([y, y], 1)),
    "in a sum": lambda m, y: m.head2(
        pooled(F.silu(torch.cat([y, y], 1) + torch.cat([y.tanh(), y], 1)))
    ),
    "flattened first": lambda m, y: (lambda z: m.head128(torch.cat([z, z.exp()], 1)))(y.flatten(1)),
    "in a sum with a layer of two units": lambda m, y: m.head2(
        pooled(m.each(torch.cat([y, y], 1)) + m.both(y))
    ),
}


def self_joined(label: str) -> nn.Module:
    """A layer of one unit, whose output is joined with itself."""
    torch.manual_seed(0)
    model = Parts(lambda m, x: SELF_JOINED[label](m, m.one(x)))
    model.one, model.both = nn.Conv2d(CHANNELS, 1, 3, padding=1), nn.Conv2d(1, 2, 1)
    model.norm2, model.each = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1, groups=2)
    model.head2, model.head128 = nn.Linear(2, 3), nn.Linear(2 * SIDE * SIDE, 3)
    model.head256 = nn.Linear(4 * SIDE * SIDE, 3)
    model.double()
    shake(model)
    return model.eval()


@pytest.mark.parametrize("label", [k for k in SELF_JOINED if "two units" not in k])
@torch.no_grad()
def test_one_unit_joined_with_itself_grows_place_by_place(label: str) -> None:
    model, x = self_joined(label), images(5)
    net = FireflyNet.from_module(model, images(2))
    expected = model(x)
    widen(net, "one", 2, generator=seeded())
    split(net, "one", torch.tensor([0]))
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(extract(net)(x), expected, rtol=1e-9, atol=1e-10)


def test_one_unit_joined_with_itself_and_added_to_two_channels_of_a_layer_is_refused() -> None:
    """New units would come behind both channels in the join, between them in the layer."""
    model = self_joined("in a sum with a layer of two units")
    with pytest.raises(UnsupportedOperation, match=r"^add at .*order of its channels"):
        FireflyNet.from_module(model, images(2))
