"""A model with a second derivative everywhere that has every structure a unit can stand in."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from growing_nets import CHANNELS, begin, images, shake
from torch import Tensor, nn

from firefly_cl.growth.criterion import Model
from firefly_cl.network import FireflyNet


class Curved(nn.Module):
    """Residual sum, pooling, concatenation, depthwise and grouped layers, with and without norm."""

    def __init__(self, pool: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.stem = nn.Sequential(nn.Conv2d(CHANNELS, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.branch = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.side = nn.Conv2d(4, 3, 1)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7)
        self.norm = nn.BatchNorm2d(7, affine=False)
        self.mix = nn.Conv2d(7, 6, 1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.dense = nn.Linear(6 * 4, 5)
        self.dense_norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        x = x + torch.tanh(self.branch(x))
        x = self.pool(x, 2)
        x = torch.cat([x, F.silu(self.side(x))], 1)
        x = F.gelu(self.norm(self.depthwise(x)))
        x = F.softplus(self.grouped(torch.tanh(self.mix(x))))
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        x = F.mish(self.dense_norm(self.dense(x)))
        logits: Tensor = self.head(torch.tanh(self.last(x)))
        return logits


def curved(
    tasks: int = 1, widths: int = 2, pool: Callable[[Tensor, int], Tensor] = F.avg_pool2d
) -> FireflyNet:
    """The net with one open task, or with one frozen and one open of `widths` own units."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Curved(pool).double()
    with torch.no_grad():  # signals that come through
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 2.0
    shake(model)
    net = FireflyNet.from_module(model.eval(), images(2))
    if tasks > 1:
        begin(net, classes=3, widths=widths)
    return net.eval()


BATCH = (images(12, seed=3), torch.arange(12) % 3)
OTHER = (images(12, seed=4), torch.arange(12) % 3)


def loss(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])
