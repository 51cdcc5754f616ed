"""Pruning by gates: weights rest while gates are searched, then units without one are removed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firefly_cl.errors import ConfigurationError, DivergenceError, EditError, NothingToPrune
from firefly_cl.gates.execution import GatedExecution
from firefly_cl.gates.scaled_sigmoid import Gates, annealing
from firefly_cl.growth.budget import COSTS, unit_cost
from firefly_cl.growth.criterion import Autocast, Loss, finite
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import prune
from firefly_cl.network.modes import evaluation
from firefly_cl.network.rebuild import Edit


@dataclass(frozen=True)
class Pruning:
    """What was removed: the edits in order, units by space, and how binary the gates had become.

    indecision: the greatest distance of a gate from the nearer of 0 and 1.
    """

    edits: list[Edit]
    removed: dict[str, int]
    kept: dict[str, int]
    indecision: float


@dataclass(frozen=True)
class GatePruning:
    """Stages 2 and 3 of DNAL (Guo, Wu, Kittler, Feng 2021, arXiv 2103.02126); training is stage 1.

    lam: the price of a unit in terms of the loss. cost: what makes a unit dear, of COSTS; prices
    are relative to the mean over all gated units, so that `lam` means the same in each. epochs:
    walks through the batches, delta going from `first` to `last`. keep: units whose gate ends
    above it stay.
    """

    lam: float = 1e-4
    cost: str = "units"
    epochs: int = 10
    learning_rate: float = 0.01
    momentum: float = 0.9
    first: float = 10**0.4
    last: float = 1e4
    keep: float = 0.9

    def __post_init__(self) -> None:
        """Raise ConfigurationError for settings that cannot work."""
        for name, good, expected in (
            ("lam", 0 <= self.lam < math.inf, "0 or more"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("first", 0 < self.first <= self.last, "above 0 and at most `last`"),
            ("last", self.last < math.inf, "finite"),
            ("keep", 0 < self.keep < 1, "between 0 and 1"),
        ):
            if not good:
                raise ConfigurationError(
                    f"{name} of gates is {getattr(self, name)}: it must be {expected}"
                )
        if self.cost not in COSTS:
            raise ConfigurationError(f"cost {self.cost!r} is unknown: use {', '.join(COSTS)}")

    def prune(
        self, net: FireflyNet, batches: Iterable[Any], loss: Loss, autocast: Autocast = nullcontext
    ) -> Pruning:
        """Search the gates of the newest task's own units and remove those that end closed.

        batches: training data, walked through once an epoch. Older tasks and the weights that stay
        do not change. Raises NothingToPrune, EditError for a frozen task, DivergenceError; `net`
        is as it was then.
        """
        return self.remove(net, self.search(net, batches, loss, autocast))

    def search(
        self, net: FireflyNet, batches: Iterable[Any], loss: Loss, autocast: Autocast = nullcontext
    ) -> Gates:
        """Stage 2: SGD on s alone, of loss + penalty; weights and running statistics rest.

        Norms go by the batch: stored statistics are those of a network without gates, and behind
        several norms that still expect twice as much nothing would be left to learn from.
        """
        gates = Gates(net, prunable_spaces(net))
        prices = unit_prices(net, list(gates.s), self.cost)
        leaves = list(gates.s.values())
        optimizer = torch.optim.SGD(leaves, self.learning_rate, self.momentum)

        def model(x: Tensor) -> Tensor:
            return GatedExecution(net, gates, by_batch=True).run(x)

        with evaluation(net):
            for delta in annealing(self.first, self.last, self.epochs):
                gates.delta, batch = delta, None
                for batch in batches:
                    with autocast():
                        value = finite(loss(model, batch), "a search of gates")
                    value = value + self.penalty(gates, prices)
                    # only gates: weights have no part in the backward pass
                    for s, gradient in zip(leaves, torch.autograd.grad(value, leaves), strict=True):
                        s.grad = gradient
                    optimizer.step()
                if batch is None:
                    raise ConfigurationError(
                        "gates found no batch to be searched on: give a list or a loader, which "
                        "can be walked through more than once"
                    )
        if not all(bool(torch.isfinite(s).all()) for s in leaves):
            raise DivergenceError("gates became NaN or infinite: lower their learning rate or lam")
        return gates

    def penalty(self, gates: Gates, prices: dict[str, float]) -> Tensor:
        """`lam` times the sum of all gates, each at the price of its unit."""
        terms = [prices[name] * z.sum() for name, z in gates.values().items()]
        return self.lam * torch.stack(terms).sum()

    def remove(self, net: FireflyNet, gates: Gates) -> Pruning:
        """Stage 3: remove units by edits; the one with the greatest s stays in any case."""
        edits, removed, kept = [], {}, {}
        for name, z in gates.values().items():
            keep = (z > self.keep).cpu()
            keep[int(gates.s[name].argmax())] = True
            kept[name], removed[name] = int(keep.sum()), int((~keep).sum())
            if removed[name]:
                edits.append(prune(net, name, keep))
        return Pruning(edits, removed, kept, gates.indecision())


def prunable_spaces(net: FireflyNet) -> list[str]:
    """Spaces in which the newest task has a unit to lose; raises NothingToPrune without any."""
    if not net.tasks or net.tasks[-1].frozen:
        raise EditError(f"task {net.current} is frozen: prune it before it is")
    spaces = [n for n in net.growable_spaces() if net.spaces[n].width(net.current) > 1]
    if not spaces:
        raise NothingToPrune(
            f"there is nothing to prune: task {net.current} has no space with two own units, "
            "and one is left in each"
        )
    return spaces


def unit_prices(net: FireflyNet, spaces: list[str], cost: str) -> dict[str, float]:
    """Cost of one own unit of each space, in parts of the mean over all own units of `spaces`."""
    costs = {name: unit_cost(net, name, cost) for name in spaces}
    widths = {name: net.spaces[name].width(net.current) for name in spaces}
    mean = sum(costs[n] * widths[n] for n in spaces) / sum(widths.values())
    return {name: each / mean for name, each in costs.items()}
