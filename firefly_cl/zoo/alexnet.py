"""AlexNet for small images, as papers on continual learning use it, with and without norms.

Source: Serra, Suris, Miron, Karatzoglou 2018, "Overcoming Catastrophic Forgetting with Hard
Attention to the Task", arXiv 1801.01423, appendix; after Krizhevsky, Sutskever, Hinton 2012. With
batch norms in place of biases: Saha, Garg, Roy 2021, "Gradient Projection Memory for Continual
Learning", arXiv 2103.09762, as its code has them. There is no dropout here: the recipe augments
images instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from firefly_cl.zoo import BACKBONES
from firefly_cl.zoo.blocks import initialise
from firefly_cl.zoo.sizes import Sizes, can_halve

CHANNELS = (64, 128, 256)
UNITS = (2048, 2048)


class AlexNet(nn.Module):
    """Three convolutions without padding, two linear layers, one head.

    (B, C, H, W) to (B, classes). Kernels grow with the image: 4, 3 and 2 pixels at a side of 32.
    Pools that would leave a single pixel are left out. Where there are norms, they take the place
    of biases.
    """

    def __init__(self, sizes: Sizes, norm: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        channels, side = sizes.in_channels, sizes.image_size
        features: list[nn.Module] = []
        kernels = max(side // 8, 1), max(side // 10, 1), 2
        for published, kernel in zip(CHANNELS, kernels, strict=True):
            width, kernel = sizes.channels(published), min(kernel, max(side - 1, 1))
            features.append(nn.Conv2d(channels, width, kernel, bias=not norm))
            if norm:
                features.append(nn.BatchNorm2d(width))
            features.append(nn.ReLU())
            channels, side = width, side - kernel + 1
            if can_halve(side):
                features.append(nn.MaxPool2d(2))
                side //= 2
        self.features = nn.Sequential(*features)
        hidden: list[nn.Module] = []
        inputs = channels * side**2
        for published in UNITS:
            units = sizes.channels(published)
            hidden.append(nn.Linear(inputs, units, bias=not norm))
            if norm:
                hidden.append(nn.BatchNorm1d(units))
            hidden.append(nn.ReLU())
            inputs = units
        self.hidden = nn.Sequential(*hidden)
        self.head = nn.Linear(inputs, sizes.n_classes)
        initialise(self, self.head, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        logits: Tensor = self.head(self.hidden(self.features(x).flatten(1)))
        return logits


@BACKBONES.register("alexnet")
def alexnet(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """AlexNet for small images: 3 convolutions and 3 linear layers, no norm."""
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    return AlexNet(sizes, norm=False, generator=generator)


@BACKBONES.register("alexnet-bn")
def alexnet_bn(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """AlexNet for small images with batch norms in place of biases."""
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    return AlexNet(sizes, norm=True, generator=generator)
