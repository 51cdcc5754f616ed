"""Layers to write odd models of, whose forward is a function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from growing_nets import CHANNELS, SIDE
from torch import Tensor, nn

Forward = Callable[["Parts", Tensor], Tensor]


class Parts(nn.Module):
    """Layers to write odd models of, and the forward that uses them."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(CHANNELS)
        self.a = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.b = nn.Conv2d(CHANNELS, 4, 1)
        self.c = nn.Conv2d(4, 6, 3, padding="same", bias=False)
        self.d = nn.Conv2d(8, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=True)
        self.deep = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.wide = nn.Conv2d(8, 4, 3, padding=2, dilation=2, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.plain_norm = nn.BatchNorm2d(4, affine=False)
        self.drop, self.drop2d = nn.Dropout(0.3), nn.Dropout2d(0.2)
        self.narrow = nn.Linear(4, 5)
        self.long = nn.Linear(4 * SIDE * SIDE, 5)
        self.flat_norm = nn.BatchNorm1d(5)
        self.head4, self.head5 = nn.Linear(4, 3), nn.Linear(5, 3)
        self.head6, self.head8 = nn.Linear(6, 3), nn.Linear(8, 3)
        self.head12 = nn.Linear(12, 3)
        self.up = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.layer_norm = nn.LayerNorm(SIDE)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))
