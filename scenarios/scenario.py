"""A scenario: a stream of tasks, each with training, validation and test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from firefly_cl.scenarios.images import Images


@dataclass(frozen=True)
class Task:
    """One task of a stream."""

    index: int
    name: str
    classes: tuple[str, ...]
    """Class names; label k of the task's images is the k-th."""
    train: Images
    validation: Images
    """Held out of the training images; empty if no validation split was asked for."""
    test: Images


@dataclass(frozen=True)
class Scenario:
    """A stream of tasks over images of one shape."""

    name: str
    tasks: tuple[Task, ...]
    mean: tuple[float, ...]
    """Of the training pixels on the scale 0..1, for each channel."""
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    flip: bool
    """Whether an image mirrored left to right keeps its class; False for digits."""
    cut_into: int | None = None
    """How many tasks the whole stream has, where `tasks` are only its first."""

    @property
    def n_tasks(self) -> int:
        """Tasks of the whole stream: what is shared out among tasks is shared among so many."""
        return self.cut_into or len(self.tasks)

    def benchmark(self, *, normalised: bool = False) -> Any:
        """An Avalanche benchmark of these tasks; imports Avalanche, which takes seconds.

        Streams `train`, `valid` (if there is a validation split) and `test`, with the task's
        index as its label and classes from zero in each experience. Items are (image, label,
        task): uint8 images, or float32 normalised by mean and std for strategies with Avalanche's
        own loader.
        """
        from firefly_cl.scenarios.stream import benchmark_of

        return benchmark_of(self, normalised=normalised)
