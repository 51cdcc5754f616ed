"""Training batches for a phase between two epochs, whose walks through them are told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from firefly_cl.continual.training import training_of


class ToldBatches:
    """A strategy's training batches, for a phase after one of its epochs that walks through them.

    Each walk is told as progress, where the strategy has a TrainingPlugin. Attributes are those of
    the loader.
    """

    def __init__(self, strategy: Any, phase: str, epoch: int) -> None:
        self._loader = strategy.dataloader
        self._training = training_of(strategy)
        self._phase, self._epoch = phase, epoch
        self._walks = 0

    def __iter__(self) -> Iterator[Any]:
        self._walks += 1
        if self._training is not None:
            phase = f"{self._phase}, pass {self._walks}"
            self._training.tell(phase=phase, epoch=self._epoch)
        return iter(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
