"""Progressive neural networks: a new column of units for every task, which reads all older ones.

Paper: Rusu et al. 2016, "Progressive Neural Networks", arXiv 1606.04671. A task trains a column of
its own, every layer of which reads the layer before it in its own and in all older columns; these
are frozen (equation 1). That is firefly's network without growth: a task begins with its column
and keeps it. Avalanche's own works for MLPs alone. Unlike in the paper, lateral connections are
weights of the layer itself (3x3 where it is), without adapters, the 1x1 convolutions that would
first make older columns narrower: with k tasks the weights grow as k^2.
"""

from __future__ import annotations

from dataclasses import dataclass

from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.firefly import FireflyLearner
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.continual.plan import Plan
from firefly_cl.errors import ConfigurationError


@dataclass(frozen=True)
class PnnOptions:
    """column: the width of later columns as a share of the first, which is the backbone."""

    column: float = 1.0

    def __post_init__(self) -> None:
        """Check it."""
        if not 0 < self.column <= 10:
            raise ConfigurationError(f"column is {self.column}; it must be in (0, 10]")

    def plan(self) -> Plan:
        """A column in every space, nothing else; no image is held out, since nothing grows."""
        return Plan(
            seed=self.column,
            early=1.0,
            shared=1.0,
            start="random",
            grow_at=(),
            select_at=(),
            prune_at=(),
            validation=0.0,
        )


@STRATEGIES.register("pnn", options=PnnOptions)
def pnn(setup: Setup) -> FireflyLearner:
    """Progressive networks; option column."""
    return FireflyLearner(setup, read_options(setup.options, PnnOptions).plan())
