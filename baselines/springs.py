"""Springs on the trunk's weights: one quadratic that holds what mattered to older tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Springs:
    """strength * (sum_i A_i (w_i - m_i)^2 + c), with stiffness A, centre m and offset c.

    Heads are left out: no later task changes them. A spring so stiff that a step of size
    `learning_rate` would overshoot its centre, and soon diverge, is softened:
    2 strength A <= 1 / (2 learning_rate). None leaves every spring as it is. All numbers are
    float32, whatever the precision of training.
    """

    def __init__(
        self,
        strength: float,
        learning_rate: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.strength = strength
        self.device = device
        self.stiffest = float("inf")
        if learning_rate and strength:
            self.stiffest = 1 / (4 * strength * learning_rate)
        self.stiffness: dict[str, Tensor] = {}
        self.centre: dict[str, Tensor] = {}
        self.offset = 0.0

    def penalty(self, model: nn.Module) -> Tensor:
        """The sum, without the strength; 0-dimensional."""
        total = torch.tensor(self.offset, device=next(model.parameters()).device)
        for name, weights in shared_weights(model):
            if name in self.stiffness:
                springs = self.stiffness[name].clamp(max=self.stiffest)
                total = total + (springs * (weights - self.centre[name]).square()).sum()
        return total

    @torch.no_grad()
    def pull(self, model: nn.Module) -> None:
        """Add the gradient of strength * penalty to the gradients of the weights."""
        for name, weights in shared_weights(model):
            if name in self.stiffness and weights.grad is not None:
                springs = self.stiffness[name].clamp(max=self.stiffest)
                weights.grad += 2 * self.strength * springs * (weights - self.centre[name])

    @torch.no_grad()
    def add(self, importances: Mapping[str, Tensor], model: nn.Module) -> None:
        """Add sum_i F_i (w_i - w*_i)^2 with w* the weights that `model` has now."""
        for name, weights in shared_weights(model):
            new, now = _plain(importances[name]), _plain(weights)
            old = self.stiffness.get(name, torch.zeros_like(new))
            centre = self.centre.get(name, now)
            total = old + new
            share = torch.where(total > 0, new / total, 0.0)
            self.offset += float((old * share * (now - centre).square()).sum())
            self.centre[name] = torch.lerp(centre, now, share)
            self.stiffness[name] = total

    @torch.no_grad()
    def replace(self, importances: Mapping[str, Tensor], model: nn.Module, kept: float) -> None:
        """Centre every spring on the weights of now; stiffness `kept` * old + new."""
        for name, weights in shared_weights(model):
            new = _plain(importances[name])
            old = self.stiffness.get(name)
            self.stiffness[name] = new if old is None else kept * old + new
            self.centre[name] = _plain(weights)

    def nbytes(self) -> int:
        """Bytes of stiffness, centres and the offset."""
        return sum(values.nbytes for values in self.state().values())

    def state(self) -> dict[str, Tensor]:
        """Stiffness and centres by parameter, and the offset (float64)."""
        return {
            **{f"stiffness {name}": values for name, values in self.stiffness.items()},
            **{f"centre {name}": values for name, values in self.centre.items()},
            "offset": torch.tensor(self.offset, dtype=torch.float64),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave; raises KeyError or ValueError for another's."""
        named = [name.partition(" ") for name in state if name != "offset"]
        parts = {
            kind: {
                name: state[f"{kind} {name}"].to(self.device)
                for word, _, name in named
                if word == kind
            }
            for kind in ("stiffness", "centre")
        }
        if parts["stiffness"].keys() != parts["centre"].keys():
            raise ValueError("springs without a centre")
        self.stiffness, self.centre = parts["stiffness"], parts["centre"]
        self.offset = float(state["offset"])


def shared_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that later tasks change, by name: all but the heads."""
    for name, weights in model.named_parameters():
        if ".heads." not in f".{name}":
            yield name, weights


def _plain(values: Tensor) -> Tensor:
    """A copy in row-major order, as it would come from a file: sums then have the same bits."""
    return values.detach().clone(memory_format=torch.contiguous_format)
