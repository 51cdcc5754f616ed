"""The loss of a training step: label smoothing and mixed batches around any criterion."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from firefly_cl.continual.mixing import Mixture


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

    def unmixed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of images that are trained on but not mixed, as `__call__` gives it."""
        return self._one(logits.float(), labels)

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


def _is_plain_cross_entropy(criterion: object) -> bool:
    return (
        type(criterion) is nn.CrossEntropyLoss
        and criterion.weight is None
        and criterion.label_smoothing == 0
        and criterion.reduction == "mean"
        and criterion.ignore_index == -100
    )
