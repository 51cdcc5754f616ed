"""The loss of a training step: label smoothing and mixup around any criterion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Mixture:
    """The other half of a mixed batch: its labels, and the share of the first half."""

    labels: Tensor
    share: float


class TrainingCriterion:
    """A criterion that smooths labels and knows mixed batches, in training steps only.

    `active` is set around a training step; otherwise the plain criterion answers, so that
    evaluation and importances see the likelihood itself. Smoothing replaces only a
    plain CrossEntropyLoss. A logit of minus infinity marks a class that the sample's task does
    not have; no mass is smoothed onto it.
    """

    def __init__(self, plain: Callable[[Tensor, Tensor], Tensor], smoothing: float) -> None:
        self.plain = plain
        self.smoothing = smoothing if _is_plain_cross_entropy(plain) else 0.0
        self.active = False
        self.mixture: Mixture | None = None

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss; logits (n, classes), labels (n,)."""
        if not self.active:
            return self.plain(logits, labels)
        logits = logits.float()
        loss = self._one(logits, labels)
        if self.mixture is None:
            return loss
        share = self.mixture.share
        return share * loss + (1 - share) * self._one(logits, self.mixture.labels)

    def _one(self, logits: Tensor, labels: Tensor) -> Tensor:
        if not self.smoothing:
            return self.plain(logits, labels)
        absent = logits.isneginf()
        if not absent.any():
            return functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        log = functional.log_softmax(logits, 1)
        hard = functional.nll_loss(log, labels)
        even = -(log.masked_fill(absent, 0).sum(1) / (~absent).sum(1)).mean()
        return (1 - self.smoothing) * hard + self.smoothing * even


def mix(
    x: Tensor, y: Tensor, tasks: Tensor, alpha: float, random: np.random.Generator
) -> tuple[Tensor, Mixture]:
    """Images mixed with others of the same task; Zhang et al. 2018, mixup.

    The share of the first image is drawn from Beta(alpha, alpha), one for the batch.
    """
    share = float(random.beta(alpha, alpha))
    first, second = (_by_task(random.permutation(len(y)), tasks) for _ in range(2))
    partner = torch.empty_like(y)
    partner[first] = second
    mixed = torch.lerp(x[partner], x, share)
    return mixed, Mixture(y[partner], share)


def _by_task(order: np.ndarray, tasks: Tensor) -> Tensor:
    shuffled = torch.from_numpy(order).to(tasks.device)
    return shuffled[tasks[shuffled].argsort(stable=True)]


def _is_plain_cross_entropy(criterion: object) -> bool:
    return (
        type(criterion) is nn.CrossEntropyLoss
        and criterion.weight is None
        and criterion.label_smoothing == 0
        and criterion.reduction == "mean"
        and criterion.ignore_index == -100
    )
