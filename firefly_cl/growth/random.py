"""Splits and new units chosen by chance, without a look at the loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget, Candidate, room_to_double, step_cost, take
from firefly_cl.growth.criterion import (
    Autocast,
    Growth,
    Loss,
    open_spaces,
    require_batches,
    require_positive,
)
from firefly_cl.growth.drawn import grow_drawn
from firefly_cl.network import FireflyNet
from firefly_cl.network.modes import evaluation


@CRITERIA.register("random")
@dataclass(frozen=True)
class Random:
    """Random growth in the manner of NASH (Elsken, Metzen, Hutter 2017, arXiv 1711.04528).

    Every own unit may be split, every space may gain as many new units as it has; which of
    these are done is drawn. reach: norm of a split's offset and of a new unit's outgoing weights,
    as a share of those of the own units there.
    """

    reach: float = 0.1

    def __post_init__(self) -> None:
        """Raise ConfigurationError for a reach that cannot work."""
        require_positive("random", reach=self.reach)

    def grow(
        self,
        net: FireflyNet,
        batches: Sequence[Any],
        loss: Loss,
        budget: Budget,
        generator: torch.Generator,
        autocast: Autocast = nullcontext,
        validation: Sequence[Any] = (),
    ) -> Growth:
        """One growth step; raises EditError, DivergenceError, and leaves `net` as it was then."""
        require_batches(batches)
        costs = open_spaces(net, budget)
        room = room_to_double(net, list(costs))
        pool = [
            Candidate(kind, space, unit, 0.0, costs[space])
            for space in costs
            for kind, count in (
                ("split", net.spaces[space].width(net.current)),
                ("new", room[space]),
            )
            for unit in range(count)
        ]
        order = torch.randperm(len(pool), generator=generator).tolist()
        chosen = take(
            (pool[i] for i in order), budget, room, lambda more: step_cost(net, more, budget)
        )
        with evaluation(net):
            return grow_drawn(net, chosen, batches[0], loss, self.reach, generator)
