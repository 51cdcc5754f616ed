"""Residual networks: resnet9 and pyramid9 (8 convolutions and a head), resnet18 with CIFAR stem.

Sources: He et al. 2016, "Deep Residual Learning for Image Recognition" (resnet18: table 1, with a
3x3 stem of stride 1 for small images; 17 convolutions on the main path and a head); Page 2018, "How
to Train Your ResNet", the 9-layer network of the DAWNBench CIFAR-10 records.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from firefly_cl.zoo import BACKBONES
from firefly_cl.zoo.blocks import ConvNet, conv_norm_relu
from firefly_cl.zoo.sizes import Sizes, can_halve


class Residual(nn.Module):
    """x + branch(x), the branch ending in a ReLU (Page 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv_norm_relu(channels, channels), conv_norm_relu(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        branch: Tensor = self.branch(x)
        return x + branch


class BasicBlock(nn.Module):
    """relu(shortcut(x) + branch(x)) with two 3x3 convolutions (He et al. 2016, figure 5 left)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv_norm_relu(in_channels, out_channels, stride=stride),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        joined: Tensor = self.relu(self.shortcut(x) + self.branch(x))
        return joined


@BACKBONES.register("resnet9")
def resnet9(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Page's 9 layers: 64, 128 + residual, 256, 512 + residual, global max pooling.

    Max pooling stands before norm and ReLU, which then see a quarter of the positions.
    """
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    return _nine_layers(sizes, (64, 128, 256, 512), generator)


@BACKBONES.register("pyramid9")
def pyramid9(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """resnet9 that widens by as many channels each time: 64, 107 + residual, 149, 192 + residual.

    Widths that grow by addition are from Han, Kim, Kim 2017, "Deep Pyramidal Residual Networks",
    arXiv 1610.02915. Nine tenths of a resnet9's weights are in its last stage, on the smallest
    maps; for about as many operations, this one has less than half as many weights.
    """
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    return _nine_layers(sizes, (64, 107, 149, 192), generator)


def _nine_layers(
    sizes: Sizes, widths: tuple[int, int, int, int], generator: torch.Generator | None
) -> nn.Module:
    stem, *stages = (sizes.channels(published) for published in widths)
    channels, side = stem, sizes.image_size
    layers: list[nn.Module] = [conv_norm_relu(sizes.in_channels, channels)]
    for wider, residual in zip(stages, (True, False, True), strict=True):
        pool = nn.MaxPool2d(2) if can_halve(side) else None
        layers.append(conv_norm_relu(channels, wider, pool=pool))
        channels = wider
        side = side // 2 if pool is not None else side
        if residual:
            layers.append(Residual(channels))
    last = nn.AdaptiveMaxPool2d(1)
    return ConvNet(nn.Sequential(*layers), channels, sizes.n_classes, generator, last)


@BACKBONES.register("resnet18")
def resnet18(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """ResNet-18 for small images: four stages of two basic blocks after a 3x3 stem."""
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    channels, side = sizes.channels(64), sizes.image_size
    layers: list[nn.Module] = [conv_norm_relu(in_channels, channels)]
    for stage, published in enumerate((64, 128, 256, 512)):
        stride = 2 if stage > 0 and can_halve(side) else 1
        side = -(-side // stride)
        layers.append(BasicBlock(channels, sizes.channels(published), stride))
        channels = sizes.channels(published)
        layers.append(BasicBlock(channels, channels, 1))
    return ConvNet(nn.Sequential(*layers), channels, n_classes, generator)
