"""Batches of one or several tasks for any Avalanche strategy, on the fast path of scenarios."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firefly_cl.errors import DataError
from firefly_cl.scenarios.batches import Augmentation, Batches, Images, images_of


@dataclass(frozen=True)
class Pixels:
    """How pixels become inputs: mean and deviation per channel, and whether mirroring is safe."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True


@dataclass(frozen=True)
class Pool:
    """Images of any tasks in memory: images (n, C, H, W), labels within the task and tasks (n,)."""

    images: Tensor
    labels: Tensor
    tasks: Tensor

    @classmethod
    def of(cls, dataset: Any) -> Pool:
        """Everything in an Avalanche dataset; raises DataError where it is empty or not finite."""
        if len(dataset) == 0:
            raise DataError("an experience has no images: drop the task or give it some")
        attribute = getattr(dataset, "targets_task_labels", None)
        uniques = sorted(attribute.uniques) if attribute is not None else []
        if len(uniques) > 1:
            parts = [
                images_of(dataset.subset(list(attribute.val_to_idx[task]))) for task in uniques
            ]
        else:
            parts = [images_of(dataset)]
        images = torch.cat([part.images for part in parts])
        if images.is_floating_point() and not images.isfinite().all():
            raise DataError("some pixels are NaN or infinite: clean the images before training")
        labels = torch.cat([part.labels for part in parts])
        tasks = torch.cat([torch.full_like(part.labels, part.task) for part in parts])
        return cls(images, labels, tasks)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)


class PoolBatches:
    """Batches [x, y, t] of a pool, all its tasks shuffled together."""

    def __init__(
        self,
        pool: Pool,
        batch_size: int,
        pixels: Pixels,
        *,
        augmentation: Augmentation | None,
        shuffle: bool,
        generator: torch.Generator,
        device: torch.device,
        channels_last: bool = False,
    ) -> None:
        self._labels = pool.labels.to(device)
        self._tasks = pool.tasks.to(device)
        # A position in the pool stands in for the label, so that it leads to label and task.
        places = Images(pool.images, torch.arange(len(pool)), 0)
        self._batches = Batches(
            places,
            batch_size,
            mean=pixels.mean,
            std=pixels.std,
            augmentation=augmentation,
            shuffle=shuffle,
            generator=generator,
            device=device,
            channels_last=channels_last,
        )

    def __len__(self) -> int:
        """Batches in one pass."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Tensor]]:
        """One pass over the pool."""
        for x, places, _ in self._batches:
            yield [x, self._labels[places], self._tasks[places]]


class RehearsalBatches:
    """Each batch of the current task joined by a batch from every memory.

    As Avalanche's ReplayDataLoader: the current task decides how long an epoch is, and
    memories start over when they end.
    """

    def __init__(self, current: PoolBatches, memories: Sequence[PoolBatches]) -> None:
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


def _endless(batches: PoolBatches) -> Iterator[list[Tensor]]:
    while True:
        yield from batches
