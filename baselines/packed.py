"""A trunk whose weights are owned by tasks: each task uses its own and those of older tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from firefly_cl.baselines import headed
from firefly_cl.baselines.headed import HeadedNet
from firefly_cl.continual.learner import Logits


class TaskNormNet(HeadedNet, ABC):
    """A HeadedNet whose tasks share kernels and matrices, weight by weight, and nothing else.

    Each task keeps biases and batch norms, with their statistics, of its own: a few numbers a
    unit, which cannot be divided among tasks. The weights of the task last asked are kept, so that
    the next answer does not unpack them again.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._unpacked: tuple[object, dict[str, Tensor]] = (None, {})

    @abstractmethod
    def used(self, task: int) -> Iterator[tuple[str, Tensor]]:
        """Which of the packed weights `task` uses, bool in their shape, by name."""

    def own_values(self, task: int) -> dict[str, Tensor]:
        """Biases, norms and statistics of `task`, and the weights that it uses; others are 0."""
        return {**super().own_values(task), **self._weights(task)}

    def _weights(self, task: int) -> dict[str, Tensor]:
        # any change in place counts up the version of a tensor
        state = [(v.data_ptr(), v._version) for v in (*self.parameters(), *self.buffers())]
        if self._unpacked[0] == (task, state):
            return self._unpacked[1]
        weights = dict(self.packed())
        found = {name: torch.where(mask, weights[name], 0.0) for name, mask in self.used(task)}
        if not torch.is_grad_enabled():
            self._unpacked = ((task, state), found)
        return found

    def packed(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Kernels and matrices of the trunk, by name."""
        for name, weights in self.trunk.named_parameters():
            if weights.ndim > 1:
                yield name, weights

    def floats(self) -> int:
        """Packed weights, heads, and each task's biases, norms and statistics."""
        kept = (*self.heads.parameters(), *self.statistics.buffers())
        return sum(values.numel() for values in (*(w for _, w in self.packed()), *kept))

    def _running(self) -> Iterator[tuple[str, Tensor]]:
        for name, values in self.trunk.named_parameters():
            if values.ndim < 2:
                yield name, values
        yield from super()._running()


class PackedNet(TaskNormNet):
    """A TaskNormNet that answers a task with the weights owned up to it, all others zero."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.owners = nn.Module()
        for name, weights in self.packed():
            owner = torch.zeros_like(weights, dtype=torch.uint8)
            self.owners.register_buffer(name.replace(".", "_"), owner)

    def owner(self, name: str) -> Tensor:
        """Whose each weight is, uint8 in the shape of the weights: 0 nobody's, n the nth task's."""
        return self.owners.get_buffer(name.replace(".", "_"))

    def used(self, task: int) -> Iterator[tuple[str, Tensor]]:
        """The weights owned by `task` and those before it."""
        number = list(self.statistics).index(str(task)) + 1
        for name, _ in self.packed():
            owner = self.owner(name)
            yield name, (owner > 0) & (owner <= number)

    def mask_bytes(self) -> int:
        """One bit for each packed weight and task, in whole bytes."""
        weights = sum(values.numel() for _, values in self.packed())
        return -(-weights * len(self.statistics) // 8)


def load(folder: Path) -> Logits:
    """The saved network as a function (task, uint8 images) -> logits; raises FileError."""
    return headed.load(folder, PackedNet)
