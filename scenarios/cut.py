"""How a labelled dataset is cut into tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from firefly_cl.errors import ConfigurationError, DataError
from firefly_cl.scenarios.images import Images
from firefly_cl.scenarios.options import ScenarioOptions
from firefly_cl.scenarios.scenario import Scenario, Task


@dataclass(frozen=True)
class Dataset:
    """A whole dataset in memory, before it is cut; labels index `classes`."""

    train_images: Tensor
    """(n, C, H, W) uint8."""
    train_labels: Tensor
    """(n,) int64."""
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]


def class_order(n_classes: int, seed: int) -> list[int]:
    """A random order of the classes, the one of Avalanche's nc_benchmark(seed=seed)."""
    return torch.randperm(n_classes, generator=torch.Generator().manual_seed(seed)).tolist()


def groups_of(order: Sequence[int], n_tasks: int, *, equal: bool = False) -> list[list[int]]:
    """`order` in n_tasks runs; where it does not divide, the first runs are one class longer.

    Raises ConfigurationError if `equal` and it does not divide, DataError for tasks of one class.
    """
    if len(order) < 2:
        raise DataError(f"too few classes ({len(order)}): a task needs at least two, add some")
    size, longer = divmod(len(order), n_tasks)
    if size < 2:
        raise DataError(
            f"{len(order)} classes in {n_tasks} tasks leave a task with fewer than two classes: "
            f"ask for {max(1, len(order) // 2)} tasks or fewer"
        )
    if equal and longer:
        fitting = [n for n in range(1, len(order) // 2 + 1) if len(order) % n == 0]
        raise ConfigurationError(
            f"{len(order)} classes cannot be cut into {n_tasks} equal tasks: "
            f"choose n_tasks (--split-into) from {', '.join(map(str, fitting))}"
        )
    starts = [task * size + min(task, longer) for task in range(n_tasks + 1)]
    return [list(order[a:b]) for a, b in pairwise(starts)]


def cut(
    name: str,
    dataset: Dataset,
    groups: Sequence[Sequence[int]],
    options: ScenarioOptions,
    *,
    flip: bool,
    names: Sequence[str] | None = None,
) -> Scenario:
    """Cut a dataset into one task for each group of classes.

    Label k of a task is the k-th class of its group. A class's held-out images depend on the seed
    and the class only, not on the task it falls into. Raises ConfigurationError if more first
    tasks are asked for than there are, or images of another size, DataError for an empty or
    single-class task.
    """
    _, channels, height, width = dataset.train_images.shape
    if options.image_size is not None and (height, width) != (options.image_size,) * 2:
        raise ConfigurationError(
            f"{name} has images of {width}x{height} pixels and does not resize them: leave "
            "image_size (--image-size) out"
        )
    if options.first_tasks is not None and options.first_tasks > len(groups):
        raise ConfigurationError(
            f"the first {options.first_tasks} tasks were asked for, {name} has {len(groups)}: "
            f"ask for {len(groups)} or fewer"
        )
    train, held_out, test = {}, {}, {}
    for c in sorted({c for group in groups for c in group}):
        train[c], held_out[c] = _split(dataset, c, options)
        test[c] = (dataset.test_labels == c).nonzero()[:, 0]
    tasks = []
    for index, group in enumerate(groups[: options.first_tasks]):
        classes = tuple(dataset.classes[c] for c in group)
        if len(group) < 2:
            raise DataError(
                f"task {index} of {name} has {len(group)} class(es), expected two or more: "
                "ask for fewer tasks"
            )
        for c in group:
            for split, found in (("training", train[c]), ("test", test[c])):
                if not len(found):
                    raise DataError(
                        f"class {dataset.classes[c]!r} of {name} has no {split} images: "
                        "add some or leave the class out"
                    )
        tasks.append(
            Task(
                index,
                names[index] if names else _task_name(index, classes),
                classes,
                _gather(dataset.train_images, [train[c] for c in group], index),
                _gather(dataset.train_images, [held_out[c] for c in group], index),
                _gather(dataset.test_images, [test[c] for c in group], index),
            )
        )
    mean, std = statistics(dataset.train_images)
    shape = (channels, height, width)
    return Scenario(name, tuple(tasks), mean, std, shape, flip, cut_into=len(groups))


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel of (n, C, H, W) uint8 images, on the scale 0..1."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = float((share * levels).sum())
        means.append(mean)
        # A constant channel carries nothing; dividing it by 1 keeps it harmless.
        deviations.append(float((share * (levels - mean) ** 2).sum().sqrt()) or 1.0)
    return tuple(means), tuple(deviations)


def _split(dataset: Dataset, c: int, options: ScenarioOptions) -> tuple[Tensor, Tensor]:
    found = (dataset.train_labels == c).nonzero()[:, 0]
    if not options.validation or not len(found):
        return found, found[:0]
    if len(found) < 2:
        raise DataError(
            f"class {dataset.classes[c]!r} has a single training image, too few to hold one out "
            "for validation: add images or set validation to 0"
        )
    n = min(max(1, round(options.validation * len(found))), len(found) - 1)
    # The factor keeps the streams of neighbouring seeds apart.
    generator = torch.Generator().manual_seed((options.seed * 1_000_003 + c + 1) % 2**63)
    order = found[torch.randperm(len(found), generator=generator)]
    return order[n:].sort().values, order[:n].sort().values


def _gather(images: Tensor, indices: Sequence[Tensor], task: int) -> Images:
    labels = torch.cat([torch.full_like(found, k) for k, found in enumerate(indices)])
    return Images(images[torch.cat(list(indices))], labels, task)


def _task_name(index: int, classes: Sequence[str]) -> str:
    return ", ".join(classes) if len(classes) <= 3 else f"task {index}"
