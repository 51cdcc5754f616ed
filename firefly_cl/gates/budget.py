"""Gates under a budget: a common threshold keeps the cost of what stays at a given share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

from firefly_cl.gates.scaled_sigmoid import Gates
from firefly_cl.growth.budget import own_cost
from firefly_cl.network import FireflyNet

_CLEAR = 1e-6
"""How far apart, in parts of them, two thresholds must lie for a number to stand between."""

_DECIDED = 20.0
"""A sigmoid of this is 1 but for 2e-9."""


class BudgetedGates(Gates):
    """z = sigmoid(delta (s - b c)), with b such that the units behind open gates cost `share`.

    c: the price of a unit of each space, so that a dear one has to be better; below b = 0, where
    units of no use have to stay, it divides, so that cheap ones stay first. share: of what the
    newest task's own rows cost, each unit counted by its gate.
    """

    def __init__(
        self,
        net: FireflyNet,
        widths: Mapping[str, int],
        prices: Mapping[str, float],
        cost: str,
        share: float,
    ) -> None:
        super().__init__(next(net.parameters()), widths)
        self.threshold = 0.0
        self._costs = OwnCost(net, list(widths), cost)
        self._c = np.concatenate([np.full(n, prices[name]) for name, n in widths.items()])
        self._starts = np.cumsum([0, *list(widths.values())[:-1]])
        self._prices = dict(prices)
        self._target = share * self._costs(np.array(list(widths.values()), float))

    def values(self) -> dict[str, Tensor]:
        """The gates z by space, (width,) each, in [0, 1]."""
        b = self.threshold
        return {
            name: torch.sigmoid(
                self.delta * (s - b * (self._prices[name] if b > 0 else 1 / self._prices[name]))
            )
            for name, s in self.s.items()
        }

    def settle(self) -> None:
        """Find the threshold anew for the present s and delta."""
        s = self._flat()

        def excess(b: float) -> float:
            open_ = expit(self.delta * (s - b * (self._c if b > 0 else 1 / self._c)))
            return self._costs(np.add.reduceat(open_, self._starts)) - self._target

        reach = float(np.abs(s).max()) + _DECIDED / self.delta
        low = -reach * float(self._c.max())
        high = reach / float(self._c.min())
        if excess(low) <= 0:
            self.threshold = low
        elif excess(high) >= 0:
            self.threshold = high
        else:
            self.threshold = float(brentq(excess, low, high, rtol=1e-6))

    def decide(self) -> None:
        """Put the threshold between the last unit that the share pays and the first that not.

        One unit of each space is paid in any case. delta grows until all gates are 0 or 1.
        """
        s = self._flat()
        own = np.where(s > 0, s / self._c, s * self._c)  # the threshold at which each gate is 1/2
        order = np.argsort(-own, kind="stable")
        space = np.repeat(np.arange(len(self._starts)), np.diff([*self._starts, len(s)]))
        paid, beyond = 0, len(s) + 1
        while beyond - paid > 1:
            n = (paid + beyond) // 2
            counts = np.bincount(space[order[:n]], minlength=len(self._starts))
            cost = self._costs(np.maximum(counts, 1).astype(float))
            paid, beyond = (n, beyond) if cost <= self._target else (paid, n)
        ranked = [math.inf, *own[order], -math.inf]
        while paid and ranked[paid] - ranked[paid + 1] <= _CLEAR * abs(ranked[paid]):
            paid -= 1
        above, below = ranked[paid], ranked[paid + 1]
        if paid == 0:
            self.threshold = below + 1.0
        elif paid == len(s):
            self.threshold = above - 1.0
        else:
            self.threshold = (above + below) / 2
        b = self.threshold
        margin = float(np.abs(s - b * (self._c if b > 0 else 1 / self._c)).min())
        self.delta = max(self.delta, _DECIDED / margin)

    def _flat(self) -> np.ndarray:
        with torch.no_grad():
            flat: np.ndarray = torch.cat(list(self.s.values())).double().cpu().numpy()
        return flat


class OwnCost:
    """What a task's own rows cost with other widths, fractions too: a polynomial of degree two.

    Each layer costs its rows times what they read, so that values at few whole widths tell it all.
    """

    def __init__(self, net: FireflyNet, spaces: Sequence[str], cost: str) -> None:
        held = {name: net.spaces[name].width(net.current) for name in spaces}

        def at(*units: str) -> float:
            more = {name: units.count(name) - width for name, width in held.items()}
            return len(units) if cost == "units" else own_cost(net, cost, None, more)

        n = len(spaces)
        self._fixed = at()
        alone = np.array([at(name) for name in spaces]) - self._fixed
        self._pairs = np.zeros((n, n))
        for i, j in itertools.combinations_with_replacement(range(n), 2):
            both = at(spaces[i], spaces[j]) - self._fixed - alone[i] - alone[j]
            self._pairs[i, j] = self._pairs[j, i] = both / 2
        self._alone = alone - self._pairs.diagonal()

    def __call__(self, widths: np.ndarray) -> float:
        """The cost of all own rows with widths (spaces,), in the order of `spaces`."""
        return float(self._fixed + widths @ (self._alone + self._pairs @ widths))
