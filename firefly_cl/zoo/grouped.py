"""Small network of grouped 3x3 and pointwise convolutions, 6 layers deep.

Source: Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks" (grouped
convolutions followed by pointwise ones that mix the groups), here without the shortcuts.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from firefly_cl.zoo import BACKBONES
from firefly_cl.zoo.blocks import ConvNet, conv_norm_relu
from firefly_cl.zoo.sizes import Sizes, can_halve

MOST_GROUPS = 4


@BACKBONES.register("grouped")
def grouped(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Stem 32, then twice a grouped 3x3 and a pointwise convolution (64, 128).

    A grouped convolution has as many of 4 groups as divide its channels.
    """
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    channels, side = sizes.channels(32), sizes.image_size
    layers: list[nn.Module] = [conv_norm_relu(in_channels, channels)]
    for published in (64, 128):
        if can_halve(side):
            layers.append(nn.MaxPool2d(2))
            side //= 2
        groups = math.gcd(channels, MOST_GROUPS)
        layers.append(conv_norm_relu(channels, channels, groups=groups))
        layers.append(conv_norm_relu(channels, sizes.channels(published), kernel_size=1))
        channels = sizes.channels(published)
    return ConvNet(nn.Sequential(*layers), channels, n_classes, generator)
