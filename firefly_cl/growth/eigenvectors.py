"""The directions in which the loss curves most, down or up: by eigenvectors, or by a search.

Papers: Liu, Wu, Wang 2019, arXiv 1910.02366 (eigenvectors of splitting matrices); Wang et al.
2019, "Energy-Aware Neural Architecture Optimization with Fast Splitting Steepest Descent", arXiv
1910.03103 (their Rayleigh quotients).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from firefly_cl.errors import ConfigurationError, EditError
from firefly_cl.growth.curvature import Curvature


@dataclass(frozen=True)
class Extreme:
    """The lowest (or highest) curvature of each unit of a space.

    values: (units,) v^T S v; vectors: (units, D) of norm 1, as `UnitRows` orders them.
    """

    values: Tensor
    vectors: Tensor


Extremes = dict[str, Extreme]
"""By space."""


def splitting_matrices(curvatures: Sequence[Curvature], most_inputs: int) -> dict[str, Tensor]:
    """The splitting matrices of own units, (units, D, D) by space, averaged over batches.

    D passes a batch, D the greatest number of inputs that a unit has. Raises EditError where it
    is above `most_inputs`.
    """
    total, lengths = {}, {}
    for space, rows in curvatures[0].rows.items():
        lengths[space] = rows.length
        if rows.length > most_inputs:
            raise EditError(
                f"a unit of {', '.join(rows.blocks)} has {rows.length} inputs: exact splitting "
                f"matrices are made up to most_inputs = {most_inputs}; use fast-splitting, or "
                "signed-splitting with exact = False"
            )
        total[space] = rows.like.new_zeros(rows.units, rows.length, rows.length)
    for curvature in curvatures:
        for k in range(max(lengths.values())):
            basis = {}
            for space, matrix in total.items():
                if k < lengths[space]:
                    basis[space] = matrix.new_zeros(matrix.shape[:2])
                    basis[space][:, k] = 1.0
            for space, column in curvature.times(basis).items():
                total[space][:, :, k] += column / len(curvatures)
    return total


def exact_extremes(curvatures: Sequence[Curvature], most_inputs: int) -> tuple[Extremes, Extremes]:
    """Lowest and highest eigenvalues of the splitting matrices, with their vectors.

    Raises EditError where a unit has more than `most_inputs` inputs.
    """
    lowest, highest = {}, {}
    for space, matrix in splitting_matrices(curvatures, most_inputs).items():
        values, vectors = torch.linalg.eigh(((matrix + matrix.mT) / 2).double())
        lowest[space], highest[space] = (
            Extreme(values[:, at], vectors[:, :, at].to(matrix)) for at in (0, -1)
        )
    return lowest, highest


@dataclass(frozen=True)
class RayleighSearch:
    """Rayleigh quotients of all units lowered (or raised) together by stochastic gradient.

    A step goes down the quotients of one batch, 2 (S v - R v) for ||v|| = 1, divided by the root
    of its mean square in the unit so far (RMSprop, one scale a unit, so that the direction of the
    gradient stays), with momentum; then v is scaled back to norm 1. step_size: of the first
    step; it falls to a thirtieth of that. memory, momentum: shares that a step keeps of the mean
    square and of the last step.
    """

    steps: int = 64
    step_size: float = 0.3
    memory: float = 0.9
    momentum: float = 0.7

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        if self.steps < 1 or not self.step_size > 0:
            raise ConfigurationError("steps and step_size of a Rayleigh search must be above 0")
        if not (0 <= self.memory < 1 and 0 <= self.momentum < 1):
            raise ConfigurationError("memory and momentum of a Rayleigh search are in [0, 1)")

    def extremes(
        self, curvatures: Sequence[Curvature], generator: torch.Generator, highest: bool = False
    ) -> Extremes:
        """The lowest curvatures found (or highest); values are means over all batches."""
        sign = -1.0 if highest else 1.0
        vectors, squares, moves = {}, {}, {}
        for space, rows in curvatures[0].rows.items():
            drawn = torch.randn(rows.units, rows.length, generator=generator).to(rows.like)
            vectors[space] = _unit(drawn)
            squares[space] = drawn.new_zeros(rows.units, 1)
            moves[space] = torch.zeros_like(drawn)
        for step in range(self.steps):
            size = self.step_size * math.exp(-math.log(30.0) * step / max(self.steps - 1, 1))
            for space, product in curvatures[step % len(curvatures)].times(vectors).items():
                v, square, move = vectors[space], squares[space], moves[space]
                slope = 2 * sign * (product - (v * product).sum(1, keepdim=True) * v)
                square.lerp_(slope.square().mean(1, keepdim=True), 1 - self.memory)
                root = (square / (1 - self.memory ** (step + 1))).sqrt()
                move.lerp_(slope / root.clamp(min=1e-30), 1 - self.momentum)
                vectors[space] = _unit(v - size * move)
        products = [curvature.times(vectors) for curvature in curvatures]
        return {
            space: Extreme((v * torch.stack([p[space] for p in products]).mean(0)).sum(1), v)
            for space, v in vectors.items()
        }


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=1)
