"""The gates: one number s for each unit, and a scale that anneals its sigmoid to a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from firefly_cl.errors import EditError
from firefly_cl.network import FireflyNet


class Gates:
    """z = sigmoid(delta s) for some units of some spaces, those of `own_gates` or `read_gates`.

    s: (width,) for each space, 0 at first, of the network's dtype; every gate is then 0.5. All
    layers that know a space (residual ties, depthwise) share its gates. Guo, Wu, Kittler, Feng
    2021, arXiv 2103.02126. `history`: all values, (units,) on the CPU, after each epoch of a
    search.
    """

    def __init__(self, like: Tensor, widths: Mapping[str, int]) -> None:
        self.s = {
            name: like.new_zeros(width).detach().requires_grad_() for name, width in widths.items()
        }
        self.delta = 1.0
        self.history: list[Tensor] = []

    def values(self) -> dict[str, Tensor]:
        """The gates z by space, (width,) each, in [0, 1]."""
        return {name: torch.sigmoid(self.delta * s) for name, s in self.s.items()}

    def settle(self) -> None:
        """Make what follows from s and delta fit them; here nothing does."""

    def decide(self) -> None:
        """End the relaxation; here delta has ended it."""

    @torch.no_grad()
    def remember(self) -> None:
        """Add the values to `history`."""
        self.history.append(torch.cat(list(self.values().values())).float().cpu())

    def indecision(self) -> float:
        """The greatest distance of a gate from the nearer of 0 and 1; 0 where there is none."""
        with torch.no_grad():
            gates = [z for z in self.values().values() if len(z)]
            return max((float(torch.minimum(z, 1 - z).max()) for z in gates), default=0.0)


def own_gates(net: FireflyNet, spaces: Iterable[str]) -> Gates:
    """One for each unit that the newest task owns; raises EditError for a space without."""
    widths = {name: net.spaces[name].width(net.current) for name in _growable(net, spaces)}
    return Gates(next(net.parameters()), widths)


def read_gates(net: FireflyNet, spaces: Iterable[str]) -> Gates:
    """One for each older unit that the newest task reads; raises EditError for a space without."""
    widths = {name: len(net.tasks[-1].reads[name]) for name in _growable(net, spaces)}
    return Gates(next(net.parameters()), widths)


def _growable(net: FireflyNet, spaces: Iterable[str]) -> list[str]:
    names = list(spaces)
    for name in names:
        if name not in net.growable_spaces():
            raise EditError(
                f"space {name!r} cannot have gates: choose from {', '.join(net.growable_spaces())}"
            )
    return names


def annealing(first: float, last: float, epochs: int) -> list[float]:
    """The scale delta of each epoch: geometric from `first` to `last`, or `last` alone."""
    if epochs == 1:
        return [last]
    return [first * (last / first) ** (epoch / (epochs - 1)) for epoch in range(epochs)]
