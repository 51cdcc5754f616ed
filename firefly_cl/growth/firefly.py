"""Firefly descent: splits, copies, new units and inserted layers compete in one selection.

Paper: Wu, Liu, Stone, Liu 2020, "Firefly Neural Architecture Descent: a General Approach for
Growing Neural Networks", arXiv 2102.08574.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from firefly_cl.errors import ConfigurationError
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import (
    Budget,
    Candidate,
    by_worth,
    room_to_double,
    step_cost,
    take,
)
from firefly_cl.growth.candidates import (
    Candidates,
    Directions,
    LayerCandidates,
    SpaceCandidates,
    by_unit,
    project,
    propose,
    propose_layers,
    unit_lengths,
)
from firefly_cl.growth.commit import commit
from firefly_cl.growth.criterion import (
    Autocast,
    Growth,
    Loss,
    finite,
    open_spaces,
    require_batches,
    require_positive,
)
from firefly_cl.growth.execution import CandidateExecution
from firefly_cl.growth.settle import settle
from firefly_cl.network import FireflyNet
from firefly_cl.network.deeper import deeper_places
from firefly_cl.network.modes import evaluation
from firefly_cl.network.rebuild import Edit


@CRITERIA.register("firefly")
@dataclass(frozen=True)
class Firefly:
    """Firefly growth of the newest task's units (docs/method.md section 3).

    news: new candidates in each space (0: none); without splits as many as it may gain, where that
    is more, so that a step can spend its budget. copies: older units tried as unlocked copies in
    each.
    depths: hidden candidates of a layer at each place where one could be inserted (0: none is).
    reach: eps, the size of a committed gate, as a share of the weights of the task's own units
    there. steps, step_size: of the search for directions, as a share of these. incoming: whether
    the search also moves the incoming weights u of new and hidden units. path_points: n of
    the mean score along a gate's path. score_batches: the first so many of the batches, which the
    score is averaged over; directions are searched on the others, or on these if there are none.
    halvings: how often the gates of all winners may be halved, as long as that lowers the loss.
    returns: how fast further units of one layer lose worth (`by_worth`).
    """

    news: int = 16
    copies: int = 16
    splits: bool = True
    depths: int = 0
    reach: float = 0.1
    steps: int = 8
    step_size: float = 0.05
    incoming: bool = False
    path_points: int = 1
    score_batches: int = 8
    halvings: int = 6
    returns: float = 8.0

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        if min(self.news, self.copies, self.depths, self.steps, self.halvings, self.returns) < 0:
            raise ConfigurationError(
                "news, copies, depths, steps, halvings and returns of firefly growth must be 0 or "
                "more"
            )
        require_positive("firefly", reach=self.reach, step_size=self.step_size)
        if self.path_points < 1 or self.score_batches < 1:
            raise ConfigurationError("path_points and score_batches must be 1 or more")

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
        places = deeper_places(net) if self.depths else []
        costs = open_spaces(net, budget, places)
        spaces = [name for name in costs if name not in places]
        room = room_to_double(net, spaces) | dict.fromkeys(places, self.depths)
        with evaluation(net):
            candidates: dict[str, SpaceCandidates | LayerCandidates] = {}
            for name in spaces:
                news = max(self.news, room[name]) if self.news and not self.splits else self.news
                candidates.update(propose(net, [name], news, self.copies, generator, self.splits))
            candidates.update(propose_layers(net, places, self.depths, generator))
            held, rest = batches[: self.score_batches], batches[self.score_batches :] or batches
            self.search(net, candidates, rest, loss, autocast)
            for _, gate in _gates(candidates):
                gate.zero_()
            scored = self.score(net, candidates, held, loss, costs)
            order = by_worth(scored, room, self.returns)
            kept = take(order, budget, room, lambda more: step_cost(net, more, budget))

            def grown(net: FireflyNet, reach: float) -> list[Edit]:
                return commit(net, candidates, kept, reach)

            reach = settle(net, held, loss, self.reach, self.halvings if kept else 0, grown)
            kept = [replace(c, gain=self._promise(c, reach)) for c in kept]
            return Growth(grown(net, reach), kept, scored)

    def search(
        self,
        net: FireflyNet,
        candidates: Candidates,
        batches: Sequence[Any],
        loss: Loss,
        autocast: Autocast = nullcontext,
    ) -> None:
        """Step 1: move directions and gates down the loss together, the network fixed.

        Each unit's direction moves by a step of fixed length against its mean gradient so far
        and is scaled back to its norm; new units of one space stay orthogonal (`project`). Gates
        move by a fixed step and stay so small that all together are no further from the network
        than one at `reach`.
        """
        searched = [d for each in candidates.values() for d in each.searched(self.incoming)]
        values = [value for directions in searched for value in directions.values]
        gates = _gates(candidates)
        reach = self.reach / math.sqrt(max(sum(len(gate) for _, gate in gates), 1))
        for kind, gate in gates:
            gate.fill_(reach if kind == "split" else 0.1 * reach)
        means = [torch.zeros_like(value) for value in values]
        for step in range(self.steps):
            with autocast():
                loss_value = self._loss(net, candidates, batches[step % len(batches)], loss)
            found = _gradients(loss_value, values + [gate for _, gate in gates])
            with torch.no_grad():
                for gradient, (_, gate) in zip(found[len(values) :], gates, strict=True):
                    gate -= (reach / self.steps) * gradient.sign()
                    gate.clamp_(-reach, reach)
                for mean, gradient in zip(means, found, strict=False):
                    mean += (gradient - mean) / (step + 1)
            left = iter(means)
            for directions in searched:
                self._move(directions, [next(left) for _ in directions.values])
            project(searched)

    @torch.no_grad()
    def _move(self, directions: Directions, means: Sequence[Tensor]) -> None:
        if not (directions.units and directions.values):
            return
        lengths = unit_lengths(means, directions.dim, directions.units).clamp(min=1e-20)
        scale = self.step_size * directions.length / lengths
        for value, mean in zip(directions.values, means, strict=True):
            value -= by_unit(scale, value, directions.dim) * mean

    def score(
        self,
        net: FireflyNet,
        candidates: Candidates,
        batches: Sequence[Any],
        loss: Loss,
        costs: dict[str, float],
    ) -> list[Candidate]:
        """Step 2: the mean gradient of each gate along its path, and what it promises.

        s_i = (1/n) sum_z dL/d eps_i at (2z-1)/(2n) eps_i, the other gates as they are (closed, in
        a growth step). A split, whose effect is even in eps, promises -eps s_i. Others promise
        max (eps |s_i| - h eps^2 / 2) over eps up to `reach`, where h, the empirical Fisher
        information of a gate, is the variance of slopes between images (batch size times that
        between batches), in the mean over the candidates of one kind and place; 0 where there is
        but one batch.
        """
        gates = [gate for _, gate in _gates(candidates)]
        slopes: list[list[Tensor]] = [[] for _ in gates]
        for batch in batches[: self.score_batches]:
            total = [torch.zeros_like(gate) for gate in gates]
            for z in range(1, self.path_points + 1):
                fraction = (2 * z - 1) / (2 * self.path_points)
                value = self._loss(net, candidates, batch, loss, fraction)
                for mean, gradient in zip(total, _gradients(value, gates), strict=True):
                    mean += gradient / self.path_points
            for of_gate, mean in zip(slopes, total, strict=True):
                of_gate.append(mean)
        scored, found = [], iter(slopes)
        for name, each in candidates.items():
            for kind, units in each.kinds().items():
                of_batches = torch.stack(next(found))
                information = 0.0
                if len(of_batches) > 1 and len(units):
                    spread = float(of_batches.var(0).mean())
                    information = spread * _batch_size(batches[0])
                for unit, slope in zip(units, of_batches.mean(0).tolist(), strict=False):
                    gain = self._gain(kind, slope, information)
                    sign = 1.0 if kind == "split" or slope < 0 else -1.0
                    scored.append(Candidate(kind, name, unit, gain, costs[name], sign, slope=slope))
        return scored

    def _gain(self, kind: str, slope: float, information: float) -> float:
        if kind == "split":
            return -self.reach * slope
        eps = min(self.reach, abs(slope) / information) if information else self.reach
        return eps * abs(slope) - information * eps**2 / 2

    def _promise(self, candidate: Candidate, reach: float) -> float:
        """The decrease of the loss by one gate of size `reach`, to first order (splits: second)."""
        if candidate.kind == "split":
            return -candidate.slope * reach**2 / self.reach
        return abs(candidate.slope) * reach

    def _loss(
        self,
        net: FireflyNet,
        candidates: Candidates,
        batch: Any,
        loss: Loss,
        fraction: float | None = None,
    ) -> Tensor:
        """The loss beside the network; gates are free, and directions where no path is followed."""
        for each in candidates.values():
            for directions in each.searched(self.incoming):
                for value in directions.values:
                    value.requires_grad_(fraction is None)
            for gate in each.gates():
                gate.requires_grad_(True)

        def model(x: Tensor) -> Tensor:
            return CandidateExecution(net, candidates, fraction, self.reach).run(x)

        return finite(loss(model, batch))


def _gradients(value: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, tensors, allow_unused=True)
    for tensor in tensors:
        tensor.requires_grad_(False)
    return [
        torch.zeros_like(t) if gradient is None else gradient
        for t, gradient in zip(tensors, found, strict=True)
    ]


def _batch_size(batch: Any) -> int:
    """Images in a batch: the length of its first tensor."""
    parts = batch if isinstance(batch, (tuple, list)) else [batch]
    return next((len(part) for part in parts if isinstance(part, Tensor) and part.dim()), 1)


def _gates(candidates: Candidates) -> list[tuple[str, Tensor]]:
    return [
        (kind, gate)
        for each in candidates.values()
        for kind, gate in zip(each.kinds(), each.gates(), strict=True)
    ]
