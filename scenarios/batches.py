"""Batches from memory: indexed, augmented and normalised without a loop over images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from firefly_cl.errors import ConfigurationError, DataError
from firefly_cl.scenarios.augmentation import Augmentation
from firefly_cl.scenarios.images import Images, normalise


class Batches:
    """Lists [x, y, t] over all images, in a new order each time it is iterated if `shuffle`.

    x: (B, C, H, W) float32, normalised; y, t: (B,) int64. The batches are as even as they can be
    and hold at most `batch_size` images, so that no small last batch disturbs batch norm (one or
    two more where one image would stand alone).
    Raises DataError for an empty split and for NaN pixels, ConfigurationError for settings that
    leave nothing of the images.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None,
        shuffle: bool,
        generator: torch.Generator,
        device: torch.device | str,
        channels_last: bool = False,
    ) -> None:
        images.require_pixels()
        channels = images.images.shape[1]
        if len(mean) != channels or len(std) != channels:
            raise DataError(
                f"images have {channels} channels, mean has {len(mean)} numbers and std "
                f"{len(std)}: give one of each for every channel"
            )
        if min(std) <= 0:
            raise DataError(f"std is {tuple(std)}, expected positive numbers: compute it anew")
        if batch_size < 1:
            raise ConfigurationError(f"batch_size is {batch_size}: give 1 or more")
        side = min(images.images.shape[2:])
        for name in ("crop_padding", "cutout"):
            if augmentation is not None and getattr(augmentation, name) >= side:
                raise ConfigurationError(
                    f"{name} is {getattr(augmentation, name)}, and images have sides of {side} "
                    "pixels: give fewer"
                )
        self.batch_size = batch_size
        self._images = images.images.to(device)
        self._labels = images.labels.to(device)
        tasks = images.tasks if images.tasks is not None else torch.tensor(images.task)
        self._tasks = tasks.to(device).expand(len(images))
        self._mean, self._std = tuple(mean), tuple(std)
        self._augmentation = augmentation
        self._shuffle = shuffle
        self.generator = generator
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._ends = _ends(len(images), batch_size)

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[list[Tensor]]:
        n, device = len(self._labels), self._images.device
        if self._shuffle:
            order = torch.randperm(n, generator=self.generator, device=self.generator.device)
            order = order.to(device)
        else:
            order = torch.arange(n, device=device)
        start = 0
        for end in self._ends:
            chosen = order[start:end]
            start = end
            x = self._images[chosen]
            if self._augmentation is None:
                x = normalise(x, self._mean, self._std)
            else:
                x = self._augmentation(x, self._mean, self._std, self.generator)
            yield [
                x.contiguous(memory_format=self._format),
                self._labels[chosen],
                self._tasks[chosen],
            ]


def _ends(n: int, batch_size: int) -> list[int]:
    batches = -(-n // batch_size)
    if n < 2 * batches and batch_size > 1:  # a batch of one image would be among them
        batches = max(n // 2, 1)
    return [n * (i + 1) // batches for i in range(batches)]
