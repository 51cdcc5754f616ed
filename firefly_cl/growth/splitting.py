"""Splitting steepest descent: units are split along the eigenvectors of splitting matrices.

Paper: Liu, Wu, Wang 2019, "Splitting Steepest Descent for Growing Neural Architectures", arXiv
1910.02366.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from firefly_cl.errors import ConfigurationError, EditError
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
from firefly_cl.network import FireflyNet
from firefly_cl.network.modes import evaluation

Search = Callable[[Sequence[Curvature]], tuple[Extremes, Extremes]]
"""Finds the lowest and highest curvatures."""


@CRITERIA.register("splitting")
@dataclass(frozen=True)
class Splitting:
    """Exact splitting steepest descent (docs/method.md section 4).

    reach: eps, how far the two copies of a unit move along its vector of norm 1. score_batches:
    batches that splitting matrices are averaged over, all held in memory. most_inputs: of one
    unit, over all layers it has rows in; above that the matrices are too large.
    """

    reach: float = 0.1
    score_batches: int = 4
    most_inputs: int = 1024

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        check_settings(self.reach, self.score_batches, self.most_inputs)

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

        some = batches[: self.score_batches]
        return grow_by_schemes(net, some, loss, budget, (SPLIT,), search, self.reach)


def check_settings(reach: float, score_batches: int, most_inputs: int = 1) -> None:
    """Raise ConfigurationError for values that cannot work."""
    require_positive("splitting", reach=reach)
    if score_batches < 1 or most_inputs < 1:
        raise ConfigurationError("score_batches and most_inputs of a split must be 1 or more")


def grow_by_schemes(
    net: FireflyNet,
    batches: Sequence[Any],
    loss: Loss,
    budget: Budget,
    schemes: Sequence[Scheme],
    search: Search,
    reach: float,
) -> Growth:
    """One growth step by splitting schemes; raises EditError, DivergenceError."""
    require_batches(batches)
    costs = open_spaces(net, budget)
    spaces = [name for name in costs if net.spaces[name].width(net.current)]
    if not spaces:
        raise EditError(
            f"task {net.current} has no unit of its own to split: begin it with seed units, or "
            "grow by a criterion that adds new ones"
        )
    with evaluation(net):
        lowest, highest = search([Curvature(net, spaces, batch, loss) for batch in batches])
        offered = offers(schemes, lowest, highest, costs, reach)
        kept = select_schemes(
            offered, budget, room_to_double(net, spaces), lambda more: step_cost(net, more, budget)
        )
        edits = commit_schemes(net, kept, schemes, lowest, highest, reach)
        return Growth(edits, kept, offered)
