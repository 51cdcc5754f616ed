"""Images that a task is not trained on, by which its growth and pruning are judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from firefly_cl.continual.learner import EVALUATION_BATCH
from firefly_cl.continual.training import training_of
from firefly_cl.network import FireflyNet
from firefly_cl.network.modes import evaluation


class HeldOut:
    """The validation images of one experience after another.

    They are those of the benchmark's validation stream or, where there is none, `share` of the
    experience's own training images, which are then not trained on.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.batches: list[list[Tensor]] = []
        self._dataset: Any = None

    def __bool__(self) -> bool:
        return self._dataset is not None

    def choose(self, strategy: Any, generator: torch.Generator) -> None:
        """Those of the strategy's experience; `generator` draws them where none come with it."""
        self._dataset = _stream_counterpart(strategy.experience)
        if self or not self.share:
            return
        dataset = strategy.adapted_dataset
        n = len(dataset)
        order = torch.randperm(n, generator=generator).tolist()
        held = min(round(self.share * n), n - 2)
        if held > 0:
            self._dataset = dataset.subset(sorted(order[:held])).eval()
            strategy.adapted_dataset = dataset.subset(sorted(order[held:]))

    def load(self, strategy: Any) -> None:
        """Keep them as inputs, on the device of the strategy."""
        self.batches = list(plain_batches(strategy, self._dataset)) if self else []

    def clear(self) -> None:
        """Let go of them."""
        self.batches, self._dataset = [], None

    @torch.no_grad()
    def measure(self, net: FireflyNet) -> tuple[float | None, float | None]:
        """Mean cross entropy and accuracy of the newest task; None where there are no images."""
        if not self.batches:
            return None, None
        total, right, n = 0.0, 0, 0
        with evaluation(net):
            for x, y in self.batches:
                logits = net(x).float()
                total += float(F.cross_entropy(logits, y, reduction="sum"))
                right += int((logits.argmax(1) == y).sum())
                n += len(y)
        return total / n, right / n


def plain_batches(strategy: Any, dataset: Any) -> Iterator[list[Tensor]]:
    """Inputs and labels of a dataset, unaugmented, on the device of the strategy."""
    training = training_of(strategy)
    loader = DataLoader(dataset, batch_size=EVALUATION_BATCH)
    batches = loader if training is None else training.plain_batches(dataset, strategy.device)
    for batch in batches:
        yield [part.to(strategy.device) for part in batch[:2]]


def _stream_counterpart(experience: Any) -> Any:
    """The dataset of an experience's counterpart in the validation stream, if there is one."""
    benchmark = getattr(experience, "benchmark", None)
    stream = getattr(benchmark, "valid_stream", None)
    number = getattr(experience, "current_experience", None)
    if not stream or number is None:
        return None
    dataset = stream[number].dataset
    return dataset.eval() if len(dataset) else None
