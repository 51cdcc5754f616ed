"""What a task's network was before gates pruned it teaches what is left of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from firefly_cl.continual.snapshot import State
from firefly_cl.errors import ConfigurationError
from firefly_cl.growth.criterion import Autocast
from firefly_cl.network import FireflyNet
from firefly_cl.network.files import net_of, structure_of


@dataclass(frozen=True)
class Distillation:
    """How much a pruned network learns from what it was; Hinton et al. 2015, arXiv 1503.02531.

    weight: its share of the loss, the labels have the rest; 0: there is none. temperature: of both
    softmaxes.
    """

    weight: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        if not 0 <= self.weight <= 1:
            raise ConfigurationError(f"distil is {self.weight}: it must be in [0, 1]")
        if not 0 < self.temperature < math.inf:
            raise ConfigurationError(
                f"distil_temperature is {self.temperature}: it must be above 0 and finite"
            )

    def loss(self, labelled: Tensor, logits: Tensor, taught: Tensor) -> Tensor:
        """(1 - weight) labelled + weight temperature^2 KL(teacher, student), the mean over images.

        labelled: the loss of the labels. logits, taught: (B, classes), of the network that learns
        and of its teacher.
        """
        student, teacher = (
            functional.log_softmax(each.float() / self.temperature, 1) for each in (logits, taught)
        )
        divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - self.weight) * labelled + self.weight * self.temperature**2 * divergence


class Teacher:
    """The newest task of a network as it is now: a copy in evaluation mode that never trains."""

    def __init__(self, net: FireflyNet) -> None:
        self.net = deepcopy(net).requires_grad_(False).eval()
        self.net.zero_grad()

    @torch.no_grad()
    def logits(self, x: Tensor, autocast: Autocast) -> Tensor:
        """(B, classes) for a batch x as in training, in its precision."""
        with autocast():
            taught: Tensor = self.net(x, self.net.current)
        return taught

    def state(self) -> State:
        """All of it, for a snapshot."""
        tensors = {f"teacher {name}": part for name, part in self.net.state_dict().items()}
        return tensors, {"teacher": structure_of(self.net)}

    @staticmethod
    def of(tensors: Mapping[str, Tensor], told: Mapping[str, Any], like: FireflyNet) -> Teacher:
        """The teacher that `state` told, on the device of `like`."""
        own = {
            name.removeprefix("teacher "): part
            for name, part in tensors.items()
            if name.startswith("teacher ")
        }
        device = next(like.parameters()).device
        teacher = Teacher(net_of(told["teacher"], own).to(device))
        for name, part in teacher.net.state_dict(keep_vars=True).items():
            part.data = own[name].to(device)  # in place of a copy, which would keep other strides
        return teacher
