"""The same number of new units in every space, as many as the budget pays for: the control."""

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


@CRITERIA.register("uniform")
@dataclass(frozen=True)
class Uniform:
    """New units without a choice of place; each is drawn as those of `random` are.

    reach: norm of a new unit's outgoing weights, as a share of that of the own units there.
    """

    reach: float = 0.1

    def __post_init__(self) -> None:
        """Raise ConfigurationError for a reach that cannot work."""
        require_positive("uniform", reach=self.reach)

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
        chosen = _evenly(net, costs, budget, generator)
        with evaluation(net):
            return grow_drawn(net, chosen, batches[0], loss, self.reach, generator)


def _evenly(
    net: FireflyNet, costs: dict[str, float], budget: Budget, generator: torch.Generator
) -> list[Candidate]:
    """Rounds of one unit a space that is not doubled yet; the last as far as the budget goes."""
    room = room_to_double(net, list(costs))
    rounds = max(room.values())

    def after(n: int) -> float:
        return step_cost(net, {s: min(n, most) for s, most in room.items()}, budget)

    whole = next((n for n in range(rounds, 0, -1) if after(n) <= budget.amount), 0)
    order = torch.randperm(len(costs), generator=generator).tolist()
    spaces = [list(costs)[i] for i in order]
    offered = [
        Candidate("new", space, n, 0.0, costs[space]) for n in range(whole + 1) for space in spaces
    ]
    return take(offered, budget, room, lambda more: step_cost(net, more, budget))
