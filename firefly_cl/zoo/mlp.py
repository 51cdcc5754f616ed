"""Multilayer perceptron on the flattened image: two hidden layers and the head, 3 layers deep.

Source: Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating errors";
the normalised one adds Ioffe and Szegedy 2015, "Batch Normalization".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from firefly_cl.zoo import BACKBONES
from firefly_cl.zoo.blocks import initialise
from firefly_cl.zoo.sizes import Sizes

HIDDEN = (256, 256)


class MLP(nn.Module):
    """Linear layers with ReLU between them: (B, C, H, W) to (B, classes)."""

    def __init__(self, sizes: Sizes, norm: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        features = sizes.in_channels * sizes.image_size**2
        for published in HIDDEN:
            units = sizes.channels(published)
            layers.append(nn.Linear(features, units, bias=not norm))
            if norm:
                layers.append(nn.BatchNorm1d(units))
            layers.append(nn.ReLU())
            features = units
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(features, sizes.n_classes)
        initialise(self, self.head, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        logits: Tensor = self.head(self.hidden(x.flatten(1)))
        return logits


@BACKBONES.register("mlp")
def mlp(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Two hidden layers of 256 units with biases, no norm."""
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    return MLP(sizes, norm=False, generator=generator)


@BACKBONES.register("mlp-bn")
def mlp_bn(
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    constant_width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Two hidden layers of 256 units, each with batch norm."""
    sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
    return MLP(sizes, norm=True, generator=generator)
