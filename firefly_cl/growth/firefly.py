"""Firefly descent, wider: splits, unlocked copies and new units compete in one selection.

Paper: Wu, Liu, Stone, Liu 2020, "Firefly Neural Architecture Descent: a General Approach for
Growing Neural Networks", arXiv 2102.08574.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firefly_cl.errors import ConfigurationError
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget, Candidate, room_to_double, select, step_cost
from firefly_cl.growth.candidates import (
    CandidateExecution,
    Candidates,
    SpaceCandidates,
    project,
    propose,
)
from firefly_cl.growth.commit import commit
from firefly_cl.growth.criterion import Autocast, Growth, Loss, finite, open_spaces
from firefly_cl.network import FireflyNet
from firefly_cl.network.modes import evaluation


@CRITERIA.register("firefly")
@dataclass(frozen=True)
class Firefly:
    """Firefly growth of the newest task's units (method.md sections 1 and 7).

    news: new candidates in each space. copies: older units tried as unlocked copies in each.
    reach: eps, the size of a committed gate; directions have norm 1 over a unit's rows. steps,
    step_size: of the search for directions. path_points: n of the mean score along a gate's
    path. score_batches: batches that the score is averaged over.
    """

    news: int = 16
    copies: int = 16
    splits: bool = True
    reach: float = 0.1
    steps: int = 8
    step_size: float = 0.5
    path_points: int = 3
    score_batches: int = 2

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        if self.news < 0 or self.copies < 0 or self.steps < 0:
            raise ConfigurationError("news, copies and steps of firefly growth must be 0 or more")
        if not (self.reach > 0 and self.step_size > 0):
            raise ConfigurationError("reach and step_size of firefly growth must be above 0")
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
        if not batches:
            raise ConfigurationError("growth needs at least one batch of training data")
        costs = open_spaces(net, budget)
        with evaluation(net):
            candidates = propose(net, list(costs), self.news, self.copies, generator, self.splits)
            self.search(net, candidates, batches, loss, autocast)
            scored = self.score(net, candidates, batches, loss, costs)
            room = room_to_double(net, list(costs))
            kept = select(scored, budget, room, lambda more: step_cost(net, more, budget))
            return Growth(commit(net, candidates, kept, self.reach), kept)

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
        and is scaled back to norm 1; gates move by a fixed step and stay within `reach`.
        """
        for space in candidates.values():
            space.split_gates.fill_(self.reach)
            for gate in (space.copy_gates, space.new_gates):
                gate.fill_(0.1 * self.reach)
        means: dict[int, Tensor] = {}
        for step in range(self.steps):
            with autocast():
                value = self._loss(net, candidates, batches[step % len(batches)], loss)
            groups = [(space, t) for space in candidates.values() for t in space.tensors()]
            gates = [gate for space in candidates.values() for gate in space.gates()]
            found = _gradients(value, [t for _, t in groups] + gates)
            with torch.no_grad():
                for gradient, gate in zip(found[len(groups) :], gates, strict=True):
                    gate -= (self.reach / self.steps) * gradient.sign()
                    gate.clamp_(-self.reach, self.reach)
                for (_, direction), gradient in zip(groups, found, strict=False):
                    mean = means.setdefault(id(direction), torch.zeros_like(direction))
                    mean += (gradient - mean) / (step + 1)
            for space in candidates.values():
                self._move(space, means)

    @torch.no_grad()
    def _move(self, space: SpaceCandidates, means: dict[int, Tensor]) -> None:
        moving = space.splits + len(space.copies)
        for values, dim, units, norm in (
            (space.directions, 0, moving, 1.0),
            (space.incoming, 0, space.news, math.sqrt(2.0)),
            (space.outgoing, 1, space.news, 1.0),
        ):
            if not units or not values:
                continue
            length = _unit_lengths([means[id(v)] for v in values.values()], dim, units)
            for value in values.values():
                shape = [1] * value.dim()
                shape[dim] = -1
                scale = self.step_size * norm / length.clamp(min=1e-20)
                scale = scale.repeat_interleave(value.shape[dim] // units).view(shape)
                value -= scale * means[id(value)]
        project(space)

    def score(
        self,
        net: FireflyNet,
        candidates: Candidates,
        batches: Sequence[Any],
        loss: Loss,
        costs: dict[str, int],
    ) -> list[Candidate]:
        """Step 2: the mean gradient of each gate along its path, and what it promises.

        s_i = (1/n) sum_z dL/d eps_i at (2z-1)/(2n) eps_i, the other gates held at their values
        of step 1. A split, whose effect is even in eps, promises -eps s_i; others |eps s_i|.
        """
        gates = [gate for space in candidates.values() for gate in space.gates()]
        total = [torch.zeros_like(gate) for gate in gates]
        rounds = self.path_points * self.score_batches
        for i in range(self.score_batches):
            batch = batches[i % len(batches)]
            for z in range(1, self.path_points + 1):
                fraction = (2 * z - 1) / (2 * self.path_points)
                value = self._loss(net, candidates, batch, loss, fraction)
                for mean, gradient in zip(total, _gradients(value, gates), strict=True):
                    mean += gradient / rounds
        scored = []
        for (name, space), means in zip(candidates.items(), _in_threes(total), strict=True):
            numbers = (
                range(space.splits),
                space.copies.tolist(),
                range(space.news),
            )
            for kind, units, mean in zip(("split", "unlock", "new"), numbers, means, strict=True):
                for unit, slope in zip(units, mean.tolist(), strict=False):
                    gain = -self.reach * slope if kind == "split" else self.reach * abs(slope)
                    sign = 1.0 if kind == "split" or slope < 0 else -1.0
                    scored.append(Candidate(kind, name, unit, gain, costs[name], sign))
        return scored

    def _loss(
        self,
        net: FireflyNet,
        candidates: Candidates,
        batch: Any,
        loss: Loss,
        fraction: float | None = None,
    ) -> Tensor:
        for space in candidates.values():
            for tensor in space.tensors():
                tensor.requires_grad_(fraction is None)
            for gate in space.gates():
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


def _unit_lengths(values: Sequence[Tensor], dim: int, units: int) -> Tensor:
    squares = [v.movedim(dim, 0).reshape(units, -1).square().sum(1) for v in values]
    return torch.stack(squares).sum(0).sqrt()


def _in_threes(values: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [(values[i], values[i + 1], values[i + 2]) for i in range(0, len(values), 3)]
