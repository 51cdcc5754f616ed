"""Small network of concatenated branches, 5 layers deep: parallel filters, then a dense link.

Sources: Szegedy et al. 2015, "Going Deeper with Convolutions" (parallel filters of several sizes);
Huang et al. 2017, "Densely Connected Convolutional Networks" (a block's input is kept beside its
output, and a norm reads both).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from firefly_cl.zoo import BACKBONES
from firefly_cl.zoo.blocks import ConvNet, conv_norm_relu
from firefly_cl.zoo.sizes import Sizes, can_halve


class Parallel(nn.Module):
    """relu(norm(cat(1x1, 3x3, pooled 1x1))): (B, C, H, W) to (B, 3 * channels, H, W)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.point = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.square = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.pooled = nn.Sequential(
            nn.AvgPool2d(3, stride=1, padding=1),
            nn.Conv2d(in_channels, channels, 1, bias=False),
        )
        self.norm = nn.BatchNorm2d(3 * channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the three branches along channels."""
        branches = [self.point(x), self.square(x), self.pooled(x)]
        joined: Tensor = self.relu(self.norm(torch.cat(branches, 1)))
        return joined


class DenseLink(nn.Module):
    """relu(norm(cat(x, conv(x)))): (B, C, H, W) to (B, C + channels, H, W)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(in_channels + channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Keep the input beside the new channels."""
        joined: Tensor = self.relu(self.norm(torch.cat([x, self.conv(x)], 1)))
        return joined


@BACKBONES.register("concat")
def concat(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Stem 32, three branches of 32, a dense link of 64, a last convolution of 128."""
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    stem, branch = sizes.channels(32), sizes.channels(32)
    link, last = sizes.channels(64), sizes.channels(128)
    side = image_size
    layers: list[nn.Module] = [
        conv_norm_relu(in_channels, stem),
        Parallel(stem, branch),
        DenseLink(3 * branch, link),
        conv_norm_relu(3 * branch + link, last),
    ]
    for place in (1, 3, 5):
        if can_halve(side):
            layers.insert(place, nn.MaxPool2d(2))
            side //= 2
    return ConvNet(nn.Sequential(*layers), last, n_classes, generator)
