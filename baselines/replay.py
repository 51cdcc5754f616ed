"""Experience replay: a memory of old images joins every batch.

Paper: Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning". Avalanche's
ReplayPlugin and its buffers; every step trains on a batch of the current task and one of the
same size from the memory, both augmented alike. Batch norm is shared and sees old and new images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import (
    BalancedExemplarsBuffer,
    ExperienceBalancedBuffer,
    ReservoirSamplingBuffer,
)
from torch import Tensor

from firefly_cl.baselines.multihead import HeadOptions
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.continual.snapshot import Steady
from firefly_cl.errors import ConfigurationError
from firefly_cl.scenarios import Images, images_of
from firefly_cl.scenarios.stream import dataset_of
from firefly_cl.search_space import Choice, searched


class ClassBuffer(BalancedExemplarsBuffer):
    """Equally many images of each class of each experience, where labels begin from zero.

    Avalanche's ClassBalancedBuffer takes equal labels of different tasks for one class.
    """

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Let images of an experience into the memory."""
        labels = torch.as_tensor(list(exp.dataset.targets))
        kinds = torch.unique(labels).tolist()
        lengths = self.get_group_lengths(len(self.buffer_groups) + len(kinds))
        for length, group in zip(lengths, self.buffer_groups.values(), strict=False):
            group.resize(agent, length)
        for kind in kinds:
            number = len(self.buffer_groups)
            group = ReservoirSamplingBuffer(lengths[number])
            group.update_from_dataset(exp.dataset.subset((labels == kind).nonzero()[:, 0].tolist()))
            self.buffer_groups[number] = group


BUFFERS = {
    "balanced": ExperienceBalancedBuffer,
    "class": ClassBuffer,
    "reservoir": ReservoirSamplingBuffer,
}


@dataclass(frozen=True)
class ReplayOptions(HeadOptions):
    """Images kept in total, equally many of each task ("balanced") or class, or any ("reservoir").

    2000 is the memory of iCaRL (Rebuffi et al. 2017) for CIFAR-100, and usual since.
    `head`: see HeadOptions.
    """

    mem_size: int = 2000
    buffer: str = searched("balanced", Choice(tuple(BUFFERS)))

    def __post_init__(self) -> None:
        """Check all."""
        super().__post_init__()
        if self.mem_size < 1:
            raise ConfigurationError(f"mem_size is {self.mem_size}: keep at least 1 image")
        if self.buffer not in BUFFERS:
            raise ConfigurationError(
                f"buffer is {self.buffer!r}; it must be one of {', '.join(BUFFERS)}"
            )


class MemoryPlugin(Steady, ReplayPlugin):
    """Avalanche's ReplayPlugin, filling its memory by the call that outlives Avalanche 0.6."""

    def __init__(self, options: ReplayOptions) -> None:
        storage = BUFFERS[options.buffer](options.mem_size)
        super().__init__(options.mem_size, storage_policy=storage)

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Let images of the experience into the memory."""
        self.storage_policy.post_adapt(strategy, strategy.experience)

    def groups(self) -> dict[int, ReservoirSamplingBuffer]:
        """The buffers, by experience, or the only one."""
        if isinstance(self.storage_policy, ReservoirSamplingBuffer):
            return {0: self.storage_policy}
        groups: dict[int, ReservoirSamplingBuffer] = self.storage_policy.buffer_groups
        return groups

    def nbytes(self) -> int:
        """Bytes of the images as they are stored, their labels and tasks; the order is left out."""
        return sum(
            values.nbytes for name, values in self.state().items() if not name.endswith("order")
        )

    def state(self) -> dict[str, Tensor]:
        """Images, labels, tasks and the reservoir's draws of each buffer."""
        state = {}
        for number, group in self.groups().items():
            if not len(group.buffer):
                continue
            held = images_of(group.buffer)
            parts = {
                "images": held.images,
                "labels": held.labels,
                "tasks": held.task_of_each(),
                "order": group._buffer_weights,
            }
            state.update({f"{number} {name}": values for name, values in parts.items()})
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        storage = self.storage_policy
        numbers = sorted({int(name.partition(" ")[0]) for name in state})
        for number in numbers:
            images, labels, tasks, order = (
                state[f"{number} {part}"] for part in ("images", "labels", "tasks", "order")
            )
            group = storage
            if isinstance(storage, BalancedExemplarsBuffer):
                group = storage.buffer_groups[number] = ReservoirSamplingBuffer(len(labels))
            if isinstance(storage, ExperienceBalancedBuffer):
                storage._num_exps = number + 1
            # One task is one number, as in new buffers: Avalanche 0.6 cannot join it to a list.
            if bool((tasks == tasks[0]).all()):
                held = Images(images, labels, int(tasks[0]))
            else:
                held = Images(images, labels, -1, tasks)
            group.buffer = dataset_of(held)
            group._buffer_weights = order


@STRATEGIES.register("replay", options=ReplayOptions)
def replay(setup: Setup) -> ResumableLearner:
    """Experience replay; options mem_size, buffer and head."""
    options = read_options(setup.options, ReplayOptions)
    plugin = MemoryPlugin(options)
    return ResumableLearner(setup, [plugin], plugin, head=options.head)
