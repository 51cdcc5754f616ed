"""GradMax: new units that change nothing yet and have the greatest gradient to learn from."""

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
from firefly_cl.growth.candidates import Candidates
from firefly_cl.growth.commit import commit
from firefly_cl.growth.criterion import Autocast, Growth, Loss, open_spaces
from firefly_cl.growth.linear_response import (
    RANK,
    as_vectors,
    linear_at_zero,
    mean_gradients,
    new_units,
    response_matrix,
)
from firefly_cl.network import FireflyNet
from firefly_cl.network.modes import evaluation


@CRITERIA.register("gradmax")
@dataclass(frozen=True)
class GradMax:
    """GradMax (Evci et al. 2022, arXiv 2201.05125, eq. 7 and 11).

    M = E[x_(l-1) g_(l+1)^T] (`response_matrix`). Where zero incoming weights can learn
    (`linear_at_zero`), a new unit has those, and as outgoing weights a leading singular vector
    of M, of norm `scale`. Elsewhere, behind a norm or ReLU, it is the other way round: outgoing
    weights are zero, incoming ones sqrt(2) times a singular vector, with the better sign. No
    function changes. rate: of the gradient step on the new weights alone whose first-order
    decrease of the loss, rate * |gradient|^2, is a unit's gain. score_batches: batches used.
    """

    scale: float = 1.0
    rate: float = 0.01
    score_batches: int = 2

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        if not (self.scale > 0 and self.rate > 0) or self.score_batches < 1:
            raise ConfigurationError(
                "scale and rate of gradmax must be above 0, score_batches 1 or more"
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
        if not batches:
            raise ConfigurationError("growth needs at least one batch of training data")
        costs, batches = open_spaces(net, budget), batches[: self.score_batches]
        room = room_to_double(net, list(costs))
        with evaluation(net):
            matrices = response_matrix(net, list(costs), batches, loss)
            candidates: Candidates = {}
            for space, matrix in matrices.items():
                candidates |= self.propose(net, space, matrix, room[space])
            scored = [
                Candidate("new", space, unit, self.rate * norm**2, costs[space])
                for space, norms in gradient_norms(net, candidates, batches, loss).items()
                for unit, norm in norms.items()
            ]
            kept = select(scored, budget, room, lambda more: step_cost(net, more, budget))
            return Growth(commit(net, candidates, kept, 1.0), kept)

    def propose(self, net: FireflyNet, space: str, matrix: Tensor, most: int) -> Candidates:
        """New units along the leading singular vectors; in the inverse form with both signs."""
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        k = min(most, int((values > RANK * values[:1]).sum()))
        if not k:
            return {}
        if linear_at_zero(net, space):
            return new_units(net, space, left.new_zeros(k, len(left)), self.scale * right[:k])
        rows = math.sqrt(2.0) * left[:, :k].T
        return new_units(net, space, torch.cat([rows, -rows]), left.new_zeros(2 * k, len(right.T)))


def gradient_norms(
    net: FireflyNet, candidates: Candidates, batches: Sequence[Any], loss: Loss
) -> dict[str, dict[int, float]]:
    """Norm of the gradient that each new unit has on its zero side, by space and unit.

    Of two units with opposite signs only the better is there.
    """
    sides = {}
    for space, made in candidates.items():
        made.new_gates.fill_(1.0)
        sides[space] = made.incoming if linear_at_zero(net, space) else made.outgoing
    tensors = [tensor for side in sides.values() for tensor in side.values()]
    found = iter(mean_gradients(net, candidates, tensors, batches, loss))
    norms = {}
    for space, side in sides.items():
        gradients, n = [next(found) for _ in side], candidates[space].news
        if side is candidates[space].incoming:
            lengths = torch.cat([g.reshape(n, -1) for g in gradients], 1).norm(dim=1)
            norms[space] = dict(enumerate(lengths.tolist()))
            continue
        pairs = as_vectors(gradients, n).norm(dim=1).view(2, -1)
        best = pairs.argmax(0) * pairs.shape[1] + torch.arange(pairs.shape[1])
        norms[space] = {unit: float(pairs.flatten()[unit]) for unit in best.tolist()}
    return norms
