"""Stochastic depth: a branch is dropped for an image with all of its units, or kept with all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from growing_nets import CHANNELS, begin, images, shake
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from firefly_cl.network import FireflyNet, extract, load_net, save_net

P = 0.4


class Branched(nn.Module):
    """Feature maps and a branch of the same, which is dropped as a whole."""

    def __init__(self, mode: str, p: float = P) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.drop = StochasticDepth(p, mode)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.drop(self.branch(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def dropping(mode: str, tasks: int = 1, p: float = P) -> FireflyNet:
    """A network of so many tasks, each of which reads the units of those before."""
    torch.manual_seed(0)
    model = Branched(mode, p).double()
    shake(model)
    net = FireflyNet.from_module(model, images(2))
    for _ in range(1, tasks):
        begin(net)
    return net


def with_branch_times(net: FireflyNet, scale: float, x: Tensor) -> Tensor:
    """Logits of the newest task, by a plain model whose branch is multiplied by a number."""
    plain = extract(net).eval()
    (drop,) = (module for module in plain.modules() if isinstance(module, StochasticDepth))
    drop.register_forward_hook(lambda module, given, out: scale * out)
    with torch.no_grad():
        logits: Tensor = plain(x)
    return logits


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("mode", ["row", "batch"])
def test_a_branch_is_dropped_with_all_its_units(mode: str, tasks: int) -> None:
    net, x = dropping(mode, tasks), images(64)
    dropped, kept = (with_branch_times(net, scale, x) for scale in (0, 1 / (1 - P)))
    shares = []
    for _ in range(8):
        found = net.train()(x).detach()
        is_dropped, is_kept = (torch.isclose(found, one).all(1) for one in (dropped, kept))
        assert (is_dropped ^ is_kept).all()
        shares.append(float(is_dropped.double().mean()))
    if mode == "batch":
        assert {*shares} == {0.0, 1.0}
    else:
        assert 0 < min(shares) and sum(shares) / 8 == pytest.approx(P, abs=0.1)


def test_nothing_is_dropped_outside_of_training(tmp_path: Path) -> None:
    net, x = dropping("row"), images(8)
    whole = with_branch_times(net, 1, x)
    save_net(net, tmp_path / "net.safetensors")
    for one in (net, load_net(tmp_path / "net.safetensors")[0]):
        torch.testing.assert_close(one.eval()(x), whole)
        assert not torch.allclose(one.train()(x), whole)
    net.train().freeze()
    torch.testing.assert_close(net(x), whole)


def test_a_branch_that_is_always_dropped_leaves_the_rest() -> None:
    net, x = dropping("row", p=1.0), images(4)
    torch.testing.assert_close(net.train()(x), with_branch_times(net, 0, x))
