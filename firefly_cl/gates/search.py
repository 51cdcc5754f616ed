"""The search for gates: weights rest, a price closes gates, and the relaxation ends binary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firefly_cl.errors import ConfigurationError, DivergenceError
from firefly_cl.gates.scaled_sigmoid import Gates, annealing
from firefly_cl.growth.budget import COSTS
from firefly_cl.growth.criterion import Autocast, Loss, finite
from firefly_cl.network import FireflyNet
from firefly_cl.network.modes import evaluation

Prices = Mapping[str, float | Tensor]
"""What a unit of each space costs: all alike, or (width,) one for each."""


@dataclass(frozen=True)
class GateSearch:
    """Stage 2 of DNAL (Guo, Wu, Kittler, Feng 2021, arXiv 2103.02126).

    lam: the price of a unit in terms of the loss. cost: what makes a unit dear, of COSTS; prices
    are relative to the mean over all gated units, so that `lam` means the same in each. epochs:
    walks through the batches, delta going from `first` to `last`. keep: units whose gate ends
    above it stay.
    """

    lam: float = 1e-4
    cost: str = "units"
    epochs: int = 10
    learning_rate: float = 0.01
    momentum: float = 0.9
    first: float = 10**0.4
    last: float = 1e4
    keep: float = 0.9

    def __post_init__(self) -> None:
        """Raise ConfigurationError for settings that cannot work."""
        for name, good, expected in (
            ("lam", 0 <= self.lam < math.inf, "0 or more"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("first", 0 < self.first <= self.last, "above 0 and at most `last`"),
            ("last", self.last < math.inf, "finite"),
            ("keep", 0 < self.keep < 1, "between 0 and 1"),
        ):
            if not good:
                raise ConfigurationError(
                    f"{name} of gates is {getattr(self, name)}: it must be {expected}"
                )
        if self.cost not in COSTS:
            raise ConfigurationError(f"cost {self.cost!r} is unknown: use {', '.join(COSTS)}")

    def descend(
        self,
        net: FireflyNet,
        gates: Gates,
        prices: Prices,
        gated: Callable[[Tensor], Tensor],
        batches: Iterable[Any],
        loss: Loss,
        autocast: Autocast = nullcontext,
    ) -> None:
        """SGD on s alone, of loss + penalty; weights and running statistics of `net` rest.

        gated: the network with its gates, from images to logits. batches: training data, walked
        through once an epoch. Raises DivergenceError, ConfigurationError without batches.
        """
        leaves = list(gates.s.values())
        optimizer = torch.optim.SGD(leaves, self.learning_rate, self.momentum)
        with evaluation(net):
            for epoch, delta in enumerate(annealing(self.first, self.last, self.epochs), 1):
                gates.delta, batch = delta, None
                for batch in batches:
                    gates.settle()
                    with autocast():
                        value = finite(loss(gated, batch), "a search of gates")
                    value = value + self.penalty(gates, prices)
                    # only gates: weights have no part in the backward pass
                    for s, gradient in zip(leaves, torch.autograd.grad(value, leaves), strict=True):
                        s.grad = gradient
                    optimizer.step()
                if batch is None:
                    raise ConfigurationError(
                        "gates found no batch to be searched on: give a list or a loader, which "
                        "can be walked through more than once"
                    )
                if not all(bool(torch.isfinite(s).all()) for s in leaves):
                    raise DivergenceError(
                        "gates became NaN or infinite: lower their learning rate or lam"
                    )
                if epoch == self.epochs:
                    gates.decide()
                else:
                    gates.settle()
                gates.remember()

    def penalty(self, gates: Gates, prices: Prices) -> Tensor:
        """`lam` times the sum of all gates, each at the price of its unit."""
        terms = [(prices[name] * z).sum() for name, z in gates.values().items()]
        return self.lam * torch.stack(terms).sum()
