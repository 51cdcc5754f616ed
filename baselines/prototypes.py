"""A multi-head network that answers by the nearest mean of a class in the space of its features."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from firefly_cl.baselines import headed
from firefly_cl.baselines.headed import HeadedNet
from firefly_cl.continual.learner import Logits


class PrototypeNet(HeadedNet):
    """A HeadedNet whose heads are for training: logits are minus squared distances to means.

    Features and means have length 1. A task without means yet answers by its head.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.means = nn.Module()

    def add_head(self, task: int, n_classes: int, generator: torch.Generator | None = None) -> None:
        """A head and room for means of `task`."""
        super().add_head(task, n_classes, generator)
        means = torch.zeros(n_classes, self.features)
        self.means.register_buffer(str(task), means.to(next(self.trunk.parameters()).device))

    def unit_features(self, x: Tensor) -> Tensor:
        """Features (B, F) of normalised images, of length 1, in float32."""
        return functional.normalize(self.trunk(x).float(), dim=1)

    def forward(self, x: Tensor, task: int) -> Tensor:
        """Logits (B, classes of the task) of normalised images."""
        means = self.means.get_buffer(str(task))
        if self.training or not bool(means.any()):
            return super().forward(x, task)
        return -(self.unit_features(x)[:, None] - means).square().sum(2)

    def every_head(self, x: Tensor) -> list[Tensor]:
        """Minus squared distances (B, classes) to the means of every task; logits in training."""
        if self.training:
            return super().every_head(x)
        features = self.unit_features(x)[:, None]
        return [-(features - means).square().sum(2) for means in self.means.buffers()]


def herd(features: Tensor, count: int) -> list[int]:
    """Numbers of `count` rows, in the order in which their mean approaches that of all.

    features: (n, F). Each next row is the one that brings the mean of those chosen nearest to
    the mean of all; Rebuffi et al. 2017, algorithm 4.
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    chosen: list[int] = []
    for k in range(1, min(count, len(features)) + 1):
        distances = (mean - (total + features) / k).square().sum(1)
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total += features[chosen[-1]]
    return chosen


def load(folder: Path) -> Logits:
    """The saved network as a function (task, uint8 images) -> logits; raises FileError."""
    return headed.load(folder, PrototypeNet)
