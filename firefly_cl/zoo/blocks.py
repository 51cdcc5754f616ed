"""Pieces that the convolutional families share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    groups: int = 1,
    pool: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution without bias, pooling if given, batch norm, ReLU; stride 1 keeps the side."""
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
    )
    pooling = [] if pool is None else [pool]
    return nn.Sequential(conv, *pooling, nn.BatchNorm2d(out_channels), nn.ReLU())


class ConvNet(nn.Module):
    """Convolutional features, one global pooling, one linear head: (B, C, H, W) to (B, classes)."""

    def __init__(
        self,
        features: nn.Module,
        channels: int,
        n_classes: int,
        generator: torch.Generator | None,
        pool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1) if pool is None else pool
        self.head = nn.Linear(channels, n_classes)
        initialise(self, self.head, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        logits: Tensor = self.head(self.pool(self.features(x)).flatten(1))
        return logits


def initialise(model: nn.Module, head: nn.Linear, generator: torch.Generator | None) -> None:
    """Draw every weight anew from `generator` (None: torch's global one); biases become zero.

    Layers before a ReLU: normal of variance 2 / fan_in (He et al. 2015, eq. 10). The head, which no
    ReLU follows: uniform in +-1/sqrt(fan_in), so that the first logits are small.
    """
    for module in model.modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        if module is head:
            bound = 1 / math.sqrt(head.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
        else:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
