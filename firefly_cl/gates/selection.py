"""Selection by gates: which older units the newest task is worth reading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firefly_cl.errors import EditError, NothingToSelect
from firefly_cl.gates.execution import GatedExecution
from firefly_cl.gates.scaled_sigmoid import Gates, read_gates
from firefly_cl.gates.search import GateSearch
from firefly_cl.growth.criterion import Autocast, Loss
from firefly_cl.network import FireflyNet
from firefly_cl.network.cost import read_cost
from firefly_cl.network.edits import deselect
from firefly_cl.network.rebuild import Edit


@dataclass(frozen=True)
class Selected:
    """What the task still reads: the edits in order, older units by space, and how binary it was.

    dropped, kept: older units that are not read any more, and that are. indecision: the greatest
    distance of a gate from the nearer of 0 and 1. history: that of the gates.
    """

    edits: list[Edit]
    dropped: dict[str, int]
    kept: dict[str, int]
    indecision: float
    history: Sequence[Tensor] = ()

    def told(self) -> dict[str, object]:
        """What is told of it, as plain values."""
        kinds = {"deselect": sum(self.dropped.values())}
        told = {"kinds": kinds, "dropped": self.dropped, "read": self.kept}
        return {**told, "indecision": self.indecision}


@dataclass(frozen=True)
class GateSelection(GateSearch):
    """Which older units the newest task reads (method.md section 7, select), by scaled sigmoids.

    A gate multiplies what the task's own rows and its head read of an older unit. The older unit
    itself, and every older task, are as they were: the unit reads whatever it read before. The
    settings are those of GateSearch; Guo, Wu, Kittler, Feng 2021, arXiv 2103.02126.
    """

    def select(
        self, net: FireflyNet, batches: Iterable[Any], loss: Loss, autocast: Autocast = nullcontext
    ) -> Selected:
        """Search the gates of the older units that are read, and deselect those that end closed.

        batches: training data, walked through once an epoch. Raises NothingToSelect, EditError
        for a frozen task, DivergenceError; `net` is as it was then.
        """
        return self.deselect(net, self.search(net, batches, loss, autocast))

    def search(
        self, net: FireflyNet, batches: Iterable[Any], loss: Loss, autocast: Autocast = nullcontext
    ) -> Gates:
        """The gates of older units, by loss and price; weights and running statistics rest.

        The task's own norms go by the batch, as in the search of GatePruning.
        """
        gates = read_gates(net, selectable_spaces(net))
        self.descend(
            net,
            gates,
            read_prices(net, list(gates.s), self.cost),
            lambda x: GatedExecution(net, older=gates, by_batch=True).run(x),
            batches,
            loss,
            autocast,
        )
        return gates

    def deselect(self, net: FireflyNet, gates: Gates) -> Selected:
        """Deselect units by edits; without own units the one with the greatest s stays."""
        edits, dropped, kept = [], {}, {}
        for name, z in gates.values().items():
            keep = (z > self.keep).cpu()
            if not net.spaces[name].width(net.current):
                keep[int(gates.s[name].argmax())] = True
            kept[name], dropped[name] = int(keep.sum()), int((~keep).sum())
            if dropped[name]:
                edits.append(deselect(net, name, net.tasks[-1].reads[name][~keep]))
        return Selected(edits, dropped, kept, gates.indecision(), gates.history)


def selectable_spaces(net: FireflyNet) -> list[str]:
    """Spaces of which the newest task reads older units; raises NothingToSelect without any."""
    if not net.tasks or net.tasks[-1].frozen:
        raise EditError(f"task {net.current} is frozen: select what it reads before it is")
    spaces = [
        name
        for name in net.growable_spaces()
        if len(net.tasks[-1].reads[name]) and net.consumers(name)
    ]
    if not spaces:
        raise NothingToSelect(
            f"there is nothing to select from: task {net.current} reads no older unit"
        )
    return spaces


def read_prices(net: FireflyNet, spaces: list[str], cost: str) -> dict[str, Tensor]:
    """Cost of reading each older unit of each space, in parts of the mean over all of them."""
    costs = {name: read_cost(net, name, cost) for name in spaces}
    mean = torch.cat(list(costs.values())).mean().clamp(min=1e-12)
    like = next(net.parameters())
    return {name: (each / mean).to(like) for name, each in costs.items()}
