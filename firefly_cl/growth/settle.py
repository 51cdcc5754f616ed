"""How far the winners of a growth step go: less, as long as that lowers the loss further."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from firefly_cl.errors import ConfigurationError, DivergenceError
from firefly_cl.growth.criterion import Loss
from firefly_cl.network import FireflyNet


def require_halvings(criterion: str, halvings: int) -> None:
    """Raise ConfigurationError unless a reach may be halved so often."""
    if halvings < 0:
        raise ConfigurationError(f"halvings of {criterion} growth must be 0 or more")


@torch.no_grad()
def settle(
    net: FireflyNet,
    batches: Sequence[Any],
    loss: Loss,
    reach: float,
    halvings: int,
    commit: Callable[[FireflyNet, float], object],
) -> float:
    """`reach`, halved at most `halvings` times, as long as the grown network has a lower loss.

    Winners were scored one by one, by the slope or curvature at gates of zero. Together they may
    go too far: those of one space went down the same slope, and a curvature ends at the next
    kink. Copies of `net` are grown by `commit` to see. Raises DivergenceError.
    """
    if not halvings:
        return reach
    least, best = math.inf, reach
    for tried in (reach * 0.5**n for n in range(halvings + 1)):
        grown = copy.deepcopy(net)
        commit(grown, tried)
        found = sum(float(loss(grown, batch)) for batch in batches)
        if found > least:
            break
        if math.isfinite(found):
            least, best = found, tried
    if math.isinf(least):
        raise DivergenceError(
            f"the loss of the grown network is not finite at any reach down to {tried:.3g}: lower "
            "the learning rate or the reach"
        )
    return best
