"""MobileNetV1 for small images: a stem and 13 depthwise-separable blocks, 28 layers deep.

Source: Howard et al. 2017, "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications", table 1. The stem and the first strided block have stride 1 here, as usual for 32x32
pixels.
"""

from __future__ import annotations

import torch
from torch import nn

from firefly_cl.zoo import BACKBONES
from firefly_cl.zoo.blocks import ConvNet, conv_norm_relu
from firefly_cl.zoo.sizes import Sizes, can_halve

# (channels of the pointwise convolution, whether the block halves the map)
BLOCKS = (
    (64, False),
    (128, False),
    (128, False),
    (256, True),
    (256, False),
    (512, True),
    *((512, False),) * 5,
    (1024, True),
    (1024, False),
)


@BACKBONES.register("mobilenetv1")
def mobilenetv1(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Depthwise 3x3 and pointwise 1x1 convolutions, each with batch norm and ReLU."""
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    channels, side = sizes.channels(32), sizes.image_size
    layers: list[nn.Module] = [conv_norm_relu(in_channels, channels)]
    for published, halve in BLOCKS:
        stride = 2 if halve and can_halve(side) else 1
        side = -(-side // stride)
        layers.append(conv_norm_relu(channels, channels, stride=stride, groups=channels))
        layers.append(conv_norm_relu(channels, sizes.channels(published), kernel_size=1))
        channels = sizes.channels(published)
    return ConvNet(nn.Sequential(*layers), channels, n_classes, generator)
