"""A trunk of which every task uses a subnetwork: a mask of its own over weights that all share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from firefly_cl.baselines import headed
from firefly_cl.baselines.packed import TaskNormNet
from firefly_cl.continual.learner import Logits


class MaskedNet(TaskNormNet):
    """A TaskNormNet that answers a task with the weights in its mask, all others zero.

    chosen: the masks of the task in training, 0 or 1 in the shape of the weights, by name; its
    trunk runs on weights times them. They become the task's with `keep_statistics`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.masks = nn.ModuleDict()
        self.chosen: Mapping[str, Tensor] = {}

    def mask(self, task: int, name: str) -> Tensor:
        """Which weights `task` uses, bool in the shape of the weights."""
        bits = self.masks[str(task)].get_buffer(name.replace(".", "_"))
        return from_bits(bits, self.trunk.get_parameter(name).shape)

    def taken(self, name: str) -> Tensor:
        """Which weights any task uses, bool in the shape of the weights."""
        taken = torch.zeros_like(self.trunk.get_parameter(name), dtype=torch.bool)
        for task in self.masks:
            taken |= self.mask(int(task), name)
        return taken

    def keep_statistics(self, task: int) -> None:
        """Remember biases, norms, statistics and masks as those of `task`."""
        super().keep_statistics(task)
        masks = nn.Module()
        for name, weights in self.packed():
            mask = self.chosen.get(name, torch.ones_like(weights))
            masks.register_buffer(name.replace(".", "_"), to_bits(mask.detach() != 0))
        self.masks[str(task)] = masks
        self.chosen = {}

    def forward(self, x: Tensor, task: int) -> Tensor:
        """Logits (B, classes of the task) of normalised images."""
        if not self.chosen or (not self.training and str(task) in self.statistics):
            return super().forward(x, task)
        own = {name: weights * self.chosen[name] for name, weights in self.packed()}
        logits: Tensor = self.heads[str(task)](torch.func.functional_call(self.trunk, own, (x,)))
        return logits

    def used(self, task: int) -> Iterator[tuple[str, Tensor]]:
        """The weights in the mask of `task`."""
        for name, _ in self.packed():
            yield name, self.mask(task, name)

    def mask_bytes(self) -> int:
        """One bit for each packed weight and task, in whole bytes for each layer: as stored."""
        return sum(bits.numel() for bits in self.masks.buffers())


def to_bits(mask: Tensor) -> Tensor:
    """A mask of any shape as uint8 (ceil(n / 8),), the first weight in the lowest bit."""
    flags = functional.pad(mask.flatten().long(), (0, -mask.numel() % 8)).view(-1, 8)
    return (flags << torch.arange(8, device=mask.device)).sum(1).to(torch.uint8)


def from_bits(bits: Tensor, shape: torch.Size) -> Tensor:
    """The mask of this shape whose `to_bits` is `bits`."""
    flags = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return flags.flatten()[: shape.numel()].view(shape).bool()


def load(folder: Path) -> Logits:
    """The saved network as a function (task, uint8 images) -> logits; raises FileError."""
    return headed.load(folder, MaskedNet)
