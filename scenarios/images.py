"""Images in memory: one tensor of pixels, one of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firefly_cl.errors import DataError


@dataclass(frozen=True)
class Images:
    """One split of one task, in memory.

    Raises DataError if the shapes, the types or the labels cannot be used.
    """

    images: Tensor
    """(n, C, H, W) uint8, or float32 already in [0, 1]."""
    labels: Tensor
    """(n,) int64, from zero within the task."""
    task: int
    """Index of the task; -1 where `tasks` names one for each image."""
    tasks: Tensor | None = None
    """(n,) int64 where the images come from several tasks (replay, joint training)."""

    def __post_init__(self) -> None:
        if self.images.ndim != 4:
            raise DataError(
                f"images have shape {tuple(self.images.shape)}, expected (n, channels, height, "
                "width): add the missing dimension, for example with images.unsqueeze(1)"
            )
        if self.images.dtype not in (torch.uint8, torch.float32):
            raise DataError(
                f"images are {self.images.dtype}, expected uint8 (0..255) or float32 (0..1): "
                "convert them first"
            )
        for name, numbers in (("labels", self.labels), ("tasks", self.tasks)):
            if numbers is None:
                continue
            if numbers.dtype != torch.int64 or numbers.shape != self.images.shape[:1]:
                raise DataError(
                    f"{name} are {numbers.dtype} of shape {tuple(numbers.shape)}, expected int64 "
                    f"of shape ({len(self.images)},): give one whole number for each image"
                )
        if len(self.labels) and int(self.labels.min()) < 0:
            raise DataError(
                f"the smallest label is {int(self.labels.min())}, expected labels from 0: "
                "number the classes of a task from zero"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def task_of_each(self) -> Tensor:
        """(n,) int64: the task of every image."""
        return torch.full_like(self.labels, self.task) if self.tasks is None else self.tasks

    def require_pixels(self) -> Images:
        """These images, if there is one at least and every pixel is a finite number.

        Raises DataError otherwise.
        """
        if not len(self):
            raise DataError(
                f"task {self.task} has no images: leave the task out, or check the paths and the "
                "class selection that filled it"
            )
        if self.images.is_floating_point():
            # A sum is NaN or infinite if any pixel is, and needs no copy of the images.
            finite = torch.isfinite(self.images.sum(dim=(1, 2, 3), dtype=torch.float64))
            if not bool(finite.all()):
                bad = int((~finite).nonzero()[0])
                raise DataError(
                    f"image {bad} of task {self.task} has NaN or infinite pixels "
                    f"({int((~finite).sum())} such images): remove or repair them"
                )
        return self

    def require_classes(self) -> Images:
        """These images, if they are usable and of two classes at least; raises DataError."""
        self.require_pixels()
        if bool((self.labels == self.labels[0]).all()):
            raise DataError(
                f"task {self.task} has images of a single class, expected two or more: merge it "
                "with another task or ask for fewer tasks"
            )
        return self


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std by channel, as float32; uint8 pixels are first divided by 255.

    images: (n, C, H, W); mean, std: C numbers on the scale 0..1.
    """
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    # In double precision first, so that the two constants are rounded once only.
    deviation = torch.tensor(std, dtype=torch.float64)
    factor = (1 / (deviation * scale)).float().view(-1, 1, 1).to(images.device)
    shift = (torch.tensor(mean, dtype=torch.float64) / deviation).float()
    return (
        images.to(torch.float32, copy=True)
        .mul_(factor)
        .sub_(shift.view(-1, 1, 1).to(images.device))
    )


class LabelledImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A map-style view of `Images`, of items (image, label), with the `targets` Avalanche needs.

    With `scaling` = (mean, std) the items are normalised floats instead of the stored pixels.
    """

    def __init__(
        self, images: Images, scaling: tuple[Sequence[float], Sequence[float]] | None = None
    ) -> None:
        self.images = images
        self.targets: list[int] = images.labels.tolist()
        self._scaling = scaling

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images.images[index]
        if self._scaling is not None:
            image = normalise(image[None], *self._scaling)[0]
        return image, self.targets[index]


def images_of(dataset: Any) -> Images:
    """Every item (image, label[, task]) of a map-style dataset, in memory.

    An Avalanche dataset is read through its evaluation transforms where these give tensors, so
    that no random transform is frozen into the copy. Raises DataError for an empty dataset and for
    items that are no tensors of one shape.
    """
    n = len(dataset)
    if not n:
        raise DataError(
            "the dataset is empty: leave this experience out, or check the class selection that "
            "made it"
        )
    if isinstance(dataset, LabelledImages):
        return dataset.images.require_pixels()
    if callable(getattr(dataset, "eval", None)):
        evaluation = dataset.eval()
        if isinstance(evaluation[0][0], Tensor):
            dataset = evaluation
    first = dataset[0]
    if not isinstance(first, Sequence) or len(first) < 2 or not isinstance(first[0], Tensor):
        found = type(first[0] if isinstance(first, Sequence) and len(first) else first).__name__
        raise DataError(
            f"an item of the dataset holds a {found}, expected (tensor, label[, task]): give the "
            "dataset a transform that makes tensors, such as torchvision's PILToTensor()"
        )
    stored = torch.empty((n, *first[0].shape), dtype=first[0].dtype)
    labels, tasks = [0] * n, [0] * n
    for index in range(n):
        image, label, *rest = dataset[index]
        if image.shape != first[0].shape or image.dtype != first[0].dtype:
            raise DataError(
                f"image {index} is {image.dtype} of shape {tuple(image.shape)}, image 0 is "
                f"{first[0].dtype} of shape {tuple(first[0].shape)}: resize all to one shape"
            )
        stored[index] = image
        labels[index] = int(label)
        tasks[index] = int(rest[0]) if rest else 0
    several = len(set(tasks)) > 1
    return Images(
        stored.float() if stored.dtype in (torch.float64, torch.float16) else stored,
        torch.tensor(labels),
        -1 if several else tasks[0],
        torch.tensor(tasks) if several else None,
    ).require_pixels()
