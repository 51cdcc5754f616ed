"""VGG with batch norm, global pooling and one linear head: 11, 16 or 19 layers as named.

Source: Simonyan and Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", table 1, columns A, D and E. The paper's three linear layers, which would hold most of
the weights at 32x32 pixels, are one linear head here: vgg11 has 8 convolutions, vgg16 13, vgg19 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from firefly_cl.zoo import BACKBONES
from firefly_cl.zoo.blocks import ConvNet, conv_norm_relu
from firefly_cl.zoo.sizes import Sizes, can_halve

STAGE_CHANNELS = (64, 128, 256, 512, 512)


def stages(
    convolutions: Sequence[int],
    widths: Sequence[int],
    sizes: Sizes,
    generator: torch.Generator | None,
) -> ConvNet:
    """Stages of so many convolutions and channels; each but those on 2x2 pixels ends in a pool."""
    layers: list[nn.Module] = []
    channels, side = sizes.in_channels, sizes.image_size
    for width, count in zip(widths, convolutions, strict=True):
        for _ in range(count):
            layers.append(conv_norm_relu(channels, width))
            channels = width
        if can_halve(side):
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return ConvNet(nn.Sequential(*layers), channels, sizes.n_classes, generator)


def _vgg(convolutions: tuple[int, ...], sizes: Sizes, generator: torch.Generator | None) -> ConvNet:
    return stages(convolutions, [sizes.channels(n) for n in STAGE_CHANNELS], sizes, generator)


@BACKBONES.register("vgg11")
def vgg11(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """VGG-11: 8 convolutions and a linear head (column A)."""
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    return _vgg((1, 1, 2, 2, 2), sizes, generator)


@BACKBONES.register("vgg16")
def vgg16(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """VGG-16: 13 convolutions and a linear head (column D)."""
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    return _vgg((2, 2, 3, 3, 3), sizes, generator)


@BACKBONES.register("vgg19")
def vgg19(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """VGG-19: 16 convolutions and a linear head (column E)."""
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    return _vgg((2, 2, 4, 4, 4), sizes, generator)
