"""Which older task a new one begins from: that whose features tell its classes apart best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from firefly_cl.network import FireflyNet
from firefly_cl.network.execution import Execution, Streams
from firefly_cl.network.graph import Node

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties that a probe tries, as shares of the mean variance of a feature."""


class _Features(Execution):
    """One task's function, keeping what its head reads."""

    features: Tensor

    def head(self, node: Node, value: Streams) -> Streams:
        parts = (self.read(node, value.get("old")), value.get("new"))
        self.features = torch.cat([part for part in parts if part is not None], 1)
        return super().head(node, value)


@torch.no_grad()
def features_of(net: FireflyNet, task: int, x: Tensor) -> Tensor:
    """What the head of a task reads of a batch of inputs, (B, features)."""
    execution = _Features(net, task)
    execution.run(x)
    return execution.features


def probe_accuracies(net: FireflyNet, batches: Iterable[Sequence[Tensor]]) -> list[float]:
    """`probe_accuracy` of the features of each frozen task of `net`, in their order.

    batches: inputs (B, C, H, W) as the network gets them, and labels (B,).
    """
    held = list(batches)
    labels = torch.cat([y for _, y in held])
    return [
        probe_accuracy(torch.cat([features_of(net, number, x) for x, _ in held]), labels)
        for number, task in enumerate(net.tasks)
        if task.frozen
    ]


def probe_accuracy(features: Tensor, labels: Tensor) -> float:
    """Leave-one-out accuracy of a ridge regression from features (n, d) to classes (n,).

    The best over `RIDGES`. Leaving one out needs no fit of its own: its residual is that of the
    fit to all, divided by 1 - h, h being the diagonal of the hat matrix (Allen 1974, "The
    Relationship between Variable Selection and Data Augmentation and a Method for Prediction").
    """
    labels = torch.unique(labels, return_inverse=True)[1]
    x = features.double()
    x = x - x.mean(0)
    targets = F.one_hot(labels).to(x)
    mean = targets.mean(0)
    targets = targets - mean
    values, vectors = torch.linalg.eigh(x.T @ x)
    values = values.clamp(min=0.0)
    scale = float(values.mean()) or 1.0
    along, rotated = x @ vectors, vectors.T @ (x.T @ targets)
    best = 0.0
    for ridge in RIDGES:
        inverse = 1 / (values + ridge * scale)
        fitted = along @ (inverse[:, None] * rotated)
        leverage = (along.square() * inverse).sum(1) + 1 / len(x)
        left_out = targets - (targets - fitted) / (1 - leverage).clamp(min=1e-12)[:, None]
        right = (left_out + mean).argmax(1) == labels
        best = max(best, float(right.double().mean()))
    return best
