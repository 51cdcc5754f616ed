"""GradMax: new units that change nothing yet and have the greatest gradient to learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from firefly_cl.errors import ConfigurationError
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.ascent import ascend, dense_vectors
from firefly_cl.growth.budget import Budget, Candidate, room_to_double, select, step_cost
from firefly_cl.growth.candidates import WiderCandidates
from firefly_cl.growth.commit import commit
from firefly_cl.growth.criterion import (
    Autocast,
    Growth,
    Loss,
    open_spaces,
    require_batches,
    require_positive,
)
from firefly_cl.growth.linear_response import (
    RANK,
    as_vectors,
    linear_at_zero,
    new_units,
    response_matrix,
)
from firefly_cl.growth.surroundings import MeasuredUnits, Surroundings
from firefly_cl.network import FireflyNet
from firefly_cl.network.modes import evaluation

_PARALLEL = 0.9
"""Cosine above which two units would learn much the same."""


@CRITERIA.register("gradmax")
@dataclass(frozen=True)
class GradMax:
    """GradMax (Evci et al. 2022, arXiv 2201.05125).

    M = E[x_(l-1) g_(l+1)^T] (`response_matrix`). Where zero incoming weights can learn
    (`linear_at_zero`), a new unit has those, and as outgoing weights a leading singular vector
    of M, of norm `scale`. Elsewhere, behind a norm or ReLU, it is the other way round: outgoing
    weights are zero, incoming ones climb (`ascend`) for `steps` steps from sqrt(2) times a
    singular vector or its negative, or from a drawn one where there are fewer than `starts` of
    these. No function changes. rate: of the gradient step on the new weights alone whose
    first-order decrease of the loss, rate |gradient|^2, is a unit's gain. score_batches: used.
    """

    scale: float = 1.0
    rate: float = 0.01
    steps: int = 8
    starts: int = 32
    score_batches: int = 2

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        require_positive("gradmax", scale=self.scale, rate=self.rate)
        if self.steps < 0 or self.starts < 0 or self.score_batches < 1:
            raise ConfigurationError(
                "gradmax takes 0 or more steps and starts, 1 or more score_batches"
            )

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
        costs, batches = open_spaces(net, budget), batches[: self.score_batches]
        room = room_to_double(net, list(costs))
        with evaluation(net):
            surroundings = Surroundings(net, batches, loss)
            matrices = response_matrix(net, list(costs), surroundings)
            candidates: WiderCandidates = {}
            for space, matrix in matrices.items():
                candidates |= self.propose(net, space, matrix, room[space], generator)
            inverse = {s: made for s, made in candidates.items() if not linear_at_zero(net, s)}
            if inverse:
                ascend(net, inverse, surroundings, self.steps)
            scored = [
                Candidate("new", space, unit, self.rate * norm**2, costs[space])
                for space, norms in gradient_norms(net, candidates, surroundings).items()
                for unit, norm in norms.items()
            ]
            kept = select(scored, budget, room, lambda more: step_cost(net, more, budget))
            return Growth(commit(net, candidates, kept, 1.0), kept, scored)

    def propose(
        self,
        net: FireflyNet,
        space: str,
        matrix: Tensor,
        most: int,
        generator: torch.Generator,
    ) -> WiderCandidates:
        """New units along the leading singular vectors; drawn ones besides in the inverse form."""
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        rank = int((values > RANK * values[:1]).sum())
        if not rank:
            return {}
        if linear_at_zero(net, space):
            k = min(most, rank)
            return new_units(net, space, left.new_zeros(k, len(left)), self.scale * right[:k])
        k = min(max(most, self.starts // 2), rank)
        more = torch.randn(max(self.starts - 2 * k, 0), len(left), generator=generator).to(left)
        rows = torch.cat([left[:, :k].T, -left[:, :k].T, F.normalize(more)])
        nothing = left.new_zeros(len(rows), right.shape[1])
        return new_units(net, space, math.sqrt(2.0) * rows, nothing)


def gradient_norms(
    net: FireflyNet, candidates: WiderCandidates, surroundings: Surroundings
) -> dict[str, dict[int, float]]:
    """Norm of the gradient that each new unit has on its zero side, by space and unit.

    A unit that has nearly the incoming rows of a better one is not there. The units' norm
    statistics are kept on the way.
    """
    direct = {space: made for space, made in candidates.items() if linear_at_zero(net, space)}
    rest = {space: made for space, made in candidates.items() if space not in direct}
    norms = {}
    for space, made in direct.items():
        rows = [value.requires_grad_(True) for value in made.incoming.values()]
        try:
            slopes = surroundings.slopes({space: made})[space]
            along = torch.stack([(slopes[k] * v).sum() for k, v in made.outgoing.items()]).sum()
            gradients = torch.autograd.grad(along, rows, materialize_grads=True)
        finally:
            for value in rows:
                value.requires_grad_(False)
        lengths = torch.cat([g.reshape(made.news, -1) for g in gradients], 1).norm(dim=1)
        norms[space] = dict(enumerate(lengths.tolist()))
    with torch.no_grad():
        for space, slopes in surroundings.slopes(rest, MeasuredUnits).items():
            lengths = as_vectors(list(slopes.values()), rest[space].news).norm(dim=1)
            rows_of = dense_vectors(net, rest[space])
            norms[space] = {unit: float(lengths[unit]) for unit in _distinct(rows_of, lengths)}
    return {space: norms[space] for space in candidates}


def _distinct(rows: Tensor, worth: Tensor) -> list[int]:
    """Numbers of the rows that are not nearly parallel to one of more worth."""
    directions = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
    chosen: list[int] = []
    for unit in worth.argsort(descending=True).tolist():
        if not chosen or float((directions[chosen] @ directions[unit]).max()) < _PARALLEL:
            chosen.append(unit)
    return chosen
