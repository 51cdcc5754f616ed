"""Batches for rehearsal, on the fast path of scenarios."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from firefly_cl.scenarios import Batches


@dataclass(frozen=True)
class Pixels:
    """How pixels become inputs: mean and deviation per channel, and whether mirroring is safe."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True

    @classmethod
    def as_they_are(cls, channels: int) -> Pixels:
        """For images that are inputs already."""
        return cls((0.0,) * channels, (1.0,) * channels)


class RehearsalBatches:
    """Each batch of the current task joined by a batch from every memory.

    As Avalanche's ReplayDataLoader: the current task decides how long an epoch is, and
    memories start over when they end.
    """

    def __init__(self, current: Batches, memories: Sequence[Batches]) -> None:
        self.current = current
        self.memories = memories

    def __len__(self) -> int:
        """Batches in one pass over the current task."""
        return len(self.current)

    def __iter__(self) -> Iterator[list[Tensor]]:
        """One pass over the current task."""
        remembered = [_endless(memory) for memory in self.memories]
        for batch in self.current:
            joined = [batch, *(next(memory) for memory in remembered)]
            yield [torch.cat(parts) for parts in zip(*joined, strict=True)]


def _endless(batches: Batches) -> Iterator[list[Tensor]]:
    while True:
        yield from batches
