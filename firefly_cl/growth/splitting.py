"""Splitting steepest descent: units are split along the eigenvectors of splitting matrices.

Paper: Liu, Wu, Wang 2019, "Splitting Steepest Descent for Growing Neural Architectures", arXiv
1910.02366.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from firefly_cl.errors import ConfigurationError, NothingToGrow
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget, room_to_double, step_cost
from firefly_cl.growth.criterion import (
    Autocast,
    Growth,
    Loss,
    open_spaces,
    require_batches,
    require_positive,
)
from firefly_cl.growth.curvature import Curvature
from firefly_cl.growth.eigenvectors import Extremes, exact_extremes
from firefly_cl.growth.schemes import SPLIT, Scheme, commit_schemes, offers, select_schemes
from firefly_cl.growth.settle import require_halvings, settle
from firefly_cl.network import FireflyNet
from firefly_cl.network.modes import evaluation
from firefly_cl.network.rebuild import Edit

Search = Callable[[Sequence[Curvature]], tuple[Extremes, Extremes]]
"""Finds the lowest and highest curvatures."""


@CRITERIA.register("splitting")
@dataclass(frozen=True)
class Splitting:
    """Exact splitting steepest descent (docs/method.md section 4).

    reach: eps, how far the two copies of a unit move along its vector of norm 1. score_batches:
    batches that splitting matrices are averaged over, all held in memory. most_inputs: of one
    unit, over all layers it has rows in; above that the matrices are too large. halvings: how
    often the reach may be halved, as long as that lowers the loss.
    """

    reach: float = 0.1
    score_batches: int = 4
    most_inputs: int = 1024
    halvings: int = 6

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        check_settings(self.reach, self.score_batches, self.halvings, self.most_inputs)

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
        """One growth step, in full precision; raises EditError, DivergenceError."""

        def search(curvatures: Sequence[Curvature]) -> tuple[Extremes, Extremes]:
            return exact_extremes(curvatures, self.most_inputs)

        step = SchemeStep((SPLIT,), search, self.reach, self.score_batches, self.halvings)
        return step.grow(net, batches, loss, budget)


def check_settings(reach: float, score_batches: int, halvings: int, most_inputs: int = 1) -> None:
    """Raise ConfigurationError for values that cannot work."""
    require_positive("splitting", reach=reach)
    require_halvings("splitting", halvings)
    if score_batches < 1 or most_inputs < 1:
        raise ConfigurationError("score_batches and most_inputs of a split must be 1 or more")


@dataclass(frozen=True)
class SchemeStep:
    """A growth step by splitting schemes; the settings are those of `Splitting`."""

    schemes: Sequence[Scheme]
    search: Search
    reach: float
    score_batches: int
    halvings: int

    def grow(self, net: FireflyNet, batches: Sequence[Any], loss: Loss, budget: Budget) -> Growth:
        """Grow `net`; raises EditError, DivergenceError."""
        require_batches(batches)
        costs = open_spaces(net, budget)
        spaces = [name for name in costs if net.spaces[name].width(net.current)]
        if not spaces:
            raise NothingToGrow(
                f"task {net.current} has no unit of its own to split: begin it with seed units, or "
                "grow by a criterion that adds new ones"
            )
        with evaluation(net):
            some, room = batches[: self.score_batches], room_to_double(net, spaces)
            lowest, highest = self.search([Curvature(net, spaces, batch, loss) for batch in some])
            offered = offers(self.schemes, lowest, highest, costs, self.reach)
            kept = select_schemes(offered, budget, room, lambda more: step_cost(net, more, budget))

            def grown(net: FireflyNet, reach: float) -> list[Edit]:
                return commit_schemes(net, kept, self.schemes, lowest, highest, reach)

            reach = settle(net, batches, loss, self.reach, self.halvings if kept else 0, grown)
            share = (reach / self.reach) ** 2
            kept = [replace(c, gain=c.gain * share) for c in kept]
            return Growth(grown(net, reach), kept, offered)
