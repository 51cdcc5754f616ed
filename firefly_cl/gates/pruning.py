"""Pruning by gates: which of the newest task's own units are worth their price, and who goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from firefly_cl.errors import ConfigurationError, EditError, NothingToPrune
from firefly_cl.gates.budget import BudgetedGates
from firefly_cl.gates.execution import GatedExecution
from firefly_cl.gates.scaled_sigmoid import Gates, own_gates
from firefly_cl.gates.search import GateSearch
from firefly_cl.growth.budget import unit_cost
from firefly_cl.growth.criterion import Autocast, Loss
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import prune
from firefly_cl.network.rebuild import Edit


@dataclass(frozen=True)
class Pruning:
    """What was removed: the edits in order, units by space, and how binary the gates had become.

    indecision: the greatest distance of a gate from the nearer of 0 and 1. history: that of the
    gates. closed: spaces without any open gate, in which one unit is left all the same.
    """

    edits: list[Edit]
    removed: dict[str, int]
    kept: dict[str, int]
    indecision: float
    history: Sequence[Tensor] = ()
    closed: Sequence[str] = ()

    def told(self) -> dict[str, object]:
        """What is told of it, as plain values."""
        kinds = {"prune": sum(self.removed.values())}
        told = {"kinds": kinds, "removed": self.removed, "kept": self.kept}
        return {**told, "indecision": self.indecision}


@dataclass(frozen=True)
class GatePruning(GateSearch):
    """Stages 2 and 3 of DNAL (Guo, Wu, Kittler, Feng 2021, arXiv 2103.02126); training is stage 1.

    The settings are those of GateSearch, and share: how much of what own rows cost is to stay, in
    the currency `cost`; `lam` is not used then. One unit of every space stays in any case.
    """

    share: float | None = None

    def __post_init__(self) -> None:
        """Raise ConfigurationError for settings that cannot work."""
        super().__post_init__()
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigurationError(
                f"share of gates is {self.share}: it must be above 0 and at most 1"
            )

    def prune(
        self, net: FireflyNet, batches: Iterable[Any], loss: Loss, autocast: Autocast = nullcontext
    ) -> Pruning:
        """Search the gates of the newest task's own units and remove those that end closed.

        batches: training data, walked through once an epoch. Older tasks and the weights that stay
        do not change. Raises NothingToPrune, EditError for a frozen task, DivergenceError; `net`
        is as it was then.
        """
        if self.share == 1:  # all of it: no search is needed
            widths = {name: net.spaces[name].width(net.current) for name in prunable_spaces(net)}
            return Pruning([], dict.fromkeys(widths, 0), widths, 0.0)
        return self.remove(net, self.search(net, batches, loss, autocast))

    def search(
        self, net: FireflyNet, batches: Iterable[Any], loss: Loss, autocast: Autocast = nullcontext
    ) -> Gates:
        """Stage 2: the gates of own units, by loss and price or share; all else rests.

        Norms go by the batch: stored statistics are those of a network without gates, and behind
        several norms that still expect twice as much nothing would be left to learn from.
        """
        gates = own_gates(net, prunable_spaces(net))
        prices = unit_prices(net, list(gates.s), self.cost)
        search: GateSearch = self
        if self.share is not None:
            widths = {name: len(s) for name, s in gates.s.items()}
            gates = BudgetedGates(net, widths, prices, self.cost, self.share)
            search = replace(self, lam=0.0)
        search.descend(
            net,
            gates,
            prices,
            lambda x: GatedExecution(net, own=gates, by_batch=True).run(x),
            batches,
            loss,
            autocast,
        )
        return gates

    def remove(self, net: FireflyNet, gates: Gates) -> Pruning:
        """Stage 3: remove units by edits; the one with the greatest s stays in any case."""
        edits, removed, kept, closed = [], {}, {}, []
        for name, z in gates.values().items():
            keep = (z > self.keep).cpu()
            if not keep.any():
                closed.append(name)
            keep[int(gates.s[name].argmax())] = True
            kept[name], removed[name] = int(keep.sum()), int((~keep).sum())
            if removed[name]:
                edits.append(prune(net, name, keep))
        return Pruning(edits, removed, kept, gates.indecision(), gates.history, closed)


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
