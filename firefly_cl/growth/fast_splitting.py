"""Fast splitting: Rayleigh quotients of all layers in one backward pass instead of eigenvectors.

Paper: Wang, Li, Wu, Liu 2019, "Energy-Aware Neural Architecture Optimization with Fast Splitting
Steepest Descent", arXiv 1910.03103.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.criterion import Autocast, Growth, Loss
from firefly_cl.growth.curvature import Curvature
from firefly_cl.growth.eigenvectors import Extremes, RayleighSearch
from firefly_cl.growth.schemes import SPLIT
from firefly_cl.growth.splitting import SchemeStep, check_settings
from firefly_cl.network import FireflyNet


@CRITERIA.register("fast-splitting")
@dataclass(frozen=True)
class FastSplitting:
    """Fast splitting steepest descent (docs/method.md section 4), for units of any size.

    reach, score_batches, halvings: as in `Splitting`. steps: of the search for vectors.
    """

    reach: float = 0.1
    score_batches: int = 4
    steps: int = RayleighSearch.steps
    halvings: int = 6

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        check_settings(self.reach, self.score_batches, self.halvings)
        RayleighSearch(self.steps)

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
            return RayleighSearch(self.steps).extremes(curvatures, generator)

        step = SchemeStep((SPLIT,), search, self.reach, self.score_batches, self.halvings)
        return step.grow(net, batches, loss, budget)
