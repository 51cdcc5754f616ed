"""Signed splitting: copies of either sign lower the loss also where no plain split does.

Paper: Wu, Ye, Lei, Lee, Liu 2020, "Steepest Descent Neural Architecture Optimization: Escaping
Local Optimum with Signed Neural Splitting", arXiv 2003.10392.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from firefly_cl.errors import ConfigurationError
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.criterion import Autocast, Growth, Loss
from firefly_cl.growth.curvature import Curvature
from firefly_cl.growth.eigenvectors import Extremes, RayleighSearch, exact_extremes
from firefly_cl.growth.schemes import signed_schemes
from firefly_cl.growth.splitting import SchemeStep, check_settings
from firefly_cl.network import FireflyNet


@CRITERIA.register("signed-splitting")
@dataclass(frozen=True)
class SignedSplitting:
    """Signed splitting steepest descent (S3D, docs/method.md section 4).

    c: most that the sizes of one unit's shares may sum to, 1 or more; 1 is plain splitting.
    exact: by eigenvectors, for units of up to `most_inputs`; else by a search of `steps`
    steps. reach, score_batches, halvings: as in `Splitting`.
    """

    c: float = 3.0
    exact: bool = True
    reach: float = 0.1
    score_batches: int = 4
    most_inputs: int = 1024
    steps: int = RayleighSearch.steps
    halvings: int = 6

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        check_settings(self.reach, self.score_batches, self.halvings, self.most_inputs)
        RayleighSearch(self.steps)
        if not 1 <= self.c < float("inf"):
            raise ConfigurationError(f"c of signed splitting must be 1 or more, not {self.c}")

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
            if self.exact:
                return exact_extremes(curvatures, self.most_inputs)
            return RayleighSearch(self.steps).extremes(curvatures, generator)

        schemes = signed_schemes(self.c)
        step = SchemeStep(schemes, search, self.reach, self.score_batches, self.halvings)
        return step.grow(net, batches, loss, budget)
