"""Splitting schemes: weighted copies of a unit, what each promises, and which to buy.

Papers: Liu, Wu, Wang 2019, arXiv 1910.02366 (two equal copies); Wu, Ye, Lei, Lee, Liu 2020,
"Steepest Descent Neural Architecture Optimization: Escaping Local Optimum with Signed Neural
Splitting", arXiv 2003.10392 (copies of either sign).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from firefly_cl.growth.budget import Budget, Candidate
from firefly_cl.growth.curvature import UnitRows
from firefly_cl.growth.eigenvectors import Extremes
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import divide
from firefly_cl.network.layers import GrowableLayer
from firefly_cl.network.rebuild import Edit


@dataclass(frozen=True)
class Copy:
    """One copy: its share of the outgoing weights, its offset in eps v_min and in eps v_max."""

    share: float
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Scheme:
    """Copies that replace a unit: their shares sum to 1, their weighted offsets to 0."""

    name: str
    copies: tuple[Copy, ...]

    @property
    def added(self) -> int:
        """Units that it adds."""
        return len(self.copies) - 1

    def gain(self, lowest: float, highest: float, reach: float) -> float:
        """Decrease of the loss, -(eps^2/2) sum_j w_j d_j^T S d_j, for the extremes of S."""
        change = sum(c.share * (c.low**2 * lowest + c.high**2 * highest) for c in self.copies)
        return -(reach**2) / 2 * change


SPLIT = Scheme("split", (Copy(0.5, low=1.0), Copy(0.5, low=-1.0)))


def signed_schemes(c: float) -> tuple[Scheme, ...]:
    """Every scheme of method.md section 4 for sum_j |w_j| <= c, fewest copies first."""
    if c == 1:
        return (SPLIT,)
    up, down = (c + 1) / 2, -(c - 1) / 2
    lower = (Copy(up / 2, low=1.0), Copy(up / 2, low=-1.0))
    upper = (Copy(down / 2, high=1.0), Copy(down / 2, high=-1.0))
    return (
        SPLIT,
        Scheme("signed-binary", (Copy(up, high=(c - 1) / (c + 1)), Copy(down, high=1.0))),
        Scheme("lower-triplet", (*lower, Copy(down))),
        Scheme("upper-triplet", (*upper, Copy(up))),
        Scheme("quartet", (*lower, *upper)),
    )


def offers(
    schemes: Sequence[Scheme],
    lowest: Extremes,
    highest: Extremes,
    costs: Mapping[str, float],
    reach: float,
) -> list[Candidate]:
    """Every scheme for every unit, with its gain and the cost of the copies that it makes."""
    return [
        Candidate(
            scheme.name,
            space,
            unit,
            scheme.gain(low, high, reach),
            scheme.added * costs[space],
            units=scheme.added,
        )
        for space, extreme in lowest.items()
        for unit, (low, high) in enumerate(
            zip(extreme.values.tolist(), highest[space].values.tolist(), strict=True)
        )
        for scheme in schemes
    ]


def select_schemes(
    offered: Sequence[Candidate],
    budget: Budget,
    most: Mapping[str, int],
    together: Callable[[Mapping[str, int]], float],
) -> list[Candidate]:
    """The scheme to keep for each unit, if any: greatest further gain for further cost first.

    A unit may go over from a scheme to one of more copies for the difference of their gains and
    costs: the greedy rule of the knapsack with one choice out of each class. most, together: as
    in `growth.budget.select`.
    """
    rivals: dict[tuple[str, int], list[Candidate]] = {}
    for candidate in offered:
        rivals.setdefault((candidate.space, candidate.unit), []).append(candidate)
    chosen: dict[tuple[str, int], Candidate] = {}
    counts: dict[str, int] = {}
    waiting: list[tuple[float, int, Candidate, Candidate | None]] = []
    number = 0

    def offer(key: tuple[str, int], now: Candidate | None) -> None:
        nonlocal number
        gain, cost = (now.gain, now.cost) if now else (0.0, 0.0)
        for more in rivals[key]:
            if more.cost > cost and more.gain > gain:
                number += 1
                worth = (more.gain - gain) / (more.cost - cost)
                heapq.heappush(waiting, (-worth, number, more, now))

    for key in rivals:
        offer(key, None)
    while waiting:
        _, _, more, before = heapq.heappop(waiting)
        key = (more.space, more.unit)
        if chosen.get(key) is not before:
            continue
        count = counts.get(more.space, 0) + more.units - (before.units if before else 0)
        if count > most.get(more.space, 0):
            continue
        if together({**counts, more.space: count}) > budget.amount:
            continue
        chosen[key] = more
        counts[more.space] = count
        offer(key, more)
    return list(chosen.values())


@torch.no_grad()
def commit_schemes(
    net: FireflyNet,
    kept: Sequence[Candidate],
    schemes: Sequence[Scheme],
    lowest: Extremes,
    highest: Extremes,
    reach: float,
) -> list[Edit]:
    """Replace units by the copies of the schemes that were kept; returns the edits."""
    by_name = {scheme.name: scheme for scheme in schemes}
    plans = []
    for space in dict.fromkeys(candidate.space for candidate in kept):
        of_space = [candidate for candidate in kept if candidate.space == space]
        copies = [(c.unit, copy) for c in of_space for copy in by_name[c.kind].copies]
        units = torch.tensor([unit for unit, _ in copies])
        low, high = lowest[space].vectors, highest[space].vectors
        at = units.to(low.device)
        offsets = (
            low.new_tensor([copy.low for _, copy in copies])[:, None] * low[at]
            + high.new_tensor([copy.high for _, copy in copies])[:, None] * high[at]
        )
        shares = torch.tensor([copy.share for _, copy in copies], dtype=torch.float64)
        plans.append((space, units, shares, UnitRows(net, space).unstack(reach * offsets)))
    edits: list[Edit] = []
    for space, units, shares, rows in plans:
        for name in rows:
            layer = net.layers[name]
            assert isinstance(layer, GrowableLayer)
            for edit in edits:
                rows[name] = edit.carry_incoming(layer, rows[name])
        edits.append(divide(net, space, units, shares, rows))
    return edits
