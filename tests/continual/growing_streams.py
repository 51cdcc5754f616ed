"""Streams of drawn images, tiny growing networks, and what is asked of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.benchmarks.scenarios.deprecated.generic_benchmark_creation import (
    create_multi_dataset_generic_benchmark,
)
from avalanche.benchmarks.utils.classification_dataset import (
    _make_taskaware_classification_dataset,
)
from small_search import SMALL_SEARCH
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from firefly_cl.continual.plan import Plan
from firefly_cl.continual.recipe import Recipe
from firefly_cl.continual.strategy import FireflyStrategy
from firefly_cl.scenarios import Augmentation
from firefly_cl.zoo import BACKBONES

PLAN = Plan(seed=0.5, grow_at=(0.5,), settings=SMALL_SEARCH)
RECIPE = Recipe(
    epochs=2,
    batch_size=16,
    augmentation=Augmentation(crop_padding=0, flip=False),
    precision="float32",
)


def drawn(classes: Sequence[int], each: int | Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 8, 8) float32 of the classes, each around a pattern of its own; labels."""
    counts = [each] * len(classes) if isinstance(each, int) else list(each)
    noise = torch.Generator().manual_seed(seed)
    images, labels = [], []
    for label, count in zip(classes, counts, strict=True):
        pattern = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(label))
        images.append(pattern + 0.3 * torch.randn(count, 1, 8, 8, generator=noise))
        labels += [label] * count
    return torch.cat(images), torch.tensor(labels)


def dataset_of(images: Tensor, labels: Tensor, task: int) -> Any:
    """An Avalanche dataset of one task."""
    data = TensorDataset(images, labels)
    data.targets = labels.tolist()  # type: ignore[attr-defined]
    return _make_taskaware_classification_dataset(data, task_labels=task)


def stream_of(
    tasks: Sequence[tuple[Sequence[int], int | Sequence[int]]], *, valid: bool = False
) -> Any:
    """A benchmark with a task for every (classes, images of each); eight test images a class."""
    train = [dataset_of(*drawn(c, n, 10 * t), t) for t, (c, n) in enumerate(tasks)]
    test = [dataset_of(*drawn(c, 8, 10 * t + 1), t) for t, (c, _) in enumerate(tasks)]
    held = [dataset_of(*drawn(c, 4, 10 * t + 2), t) for t, (c, _) in enumerate(tasks)]
    return create_multi_dataset_generic_benchmark(
        train, test, other_streams_datasets={"valid": held} if valid else None
    )


def backbone(name: str = "mlp", seed: int = 0) -> nn.Module:
    """A thin network of the zoo for one-channel images of 8 pixels."""
    model: nn.Module = BACKBONES.get(name)(
        n_classes=2,
        in_channels=1,
        image_size=8,
        constant_width=6,
        generator=torch.Generator().manual_seed(seed),
    )
    return model


def growing(name: str = "mlp", **changes: Any) -> FireflyStrategy:
    """A strategy on a thin network; quick unless told otherwise."""
    seed = changes.get("seed", 0)
    values: dict[str, Any] = {"plan": PLAN, "recipe": RECIPE, "evaluator": None, **changes}
    if values["evaluator"] is None:
        from avalanche.training.plugins import EvaluationPlugin

        values["evaluator"] = EvaluationPlugin()
    return FireflyStrategy(
        model=values.pop("model", None) or backbone(name, seed),
        example_input=torch.zeros(2, 1, 8, 8),
        **values,
    )


@torch.no_grad()
def answers(model: nn.Module, task: int, images: Tensor) -> Tensor:
    """Logits in evaluation mode, float32."""
    model.eval()
    logits: Tensor = model(images, task)
    return logits.clone()


def accuracy(model: nn.Module, experience: Any) -> float:
    """On one experience of a test stream."""
    items = [experience.dataset[i] for i in range(len(experience.dataset))]
    images = torch.stack([item[0] for item in items])
    labels = torch.tensor([int(item[1]) for item in items])
    found = answers(model, experience.task_label, images).argmax(1)
    return (found == labels).float().mean().item()
