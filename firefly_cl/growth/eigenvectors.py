"""The directions in which the loss curves most, down or up: by eigenvectors, or by a search.

Papers: Liu, Wu, Wang 2019, arXiv 1910.02366 (eigenvectors of splitting matrices); Wang et al.
2019, "Energy-Aware Neural Architecture Optimization with Fast Splitting Steepest Descent", arXiv
1910.03103 (their Rayleigh quotients).
"""

from __future__ import annotations

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
    """Rayleigh quotients v^T S v / v^T v of all units at their extremes over a Krylov space.

    From a random vector of each unit, `steps` products with its matrix, each a backward pass a
    batch for all layers together, span the space that any method of as many gradient steps
    searches; in it both extremes are eigenvectors of a small matrix (Lanczos 1950, with full
    orthogonalisation). Wang et al. go down by RMSprop instead.
    """

    steps: int = 24

    def __post_init__(self) -> None:
        """Raise ConfigurationError for a number of steps that cannot work."""
        if self.steps < 1:
            raise ConfigurationError("steps of a search for vectors must be 1 or more")

    def extremes(
        self, curvatures: Sequence[Curvature], generator: torch.Generator
    ) -> tuple[Extremes, Extremes]:
        """The lowest and highest curvatures found of the mean over batches."""
        bases: dict[str, list[Tensor]] = {}
        images: dict[str, list[Tensor]] = {}
        for space, rows in curvatures[0].rows.items():
            drawn = torch.randn(rows.units, rows.length, generator=generator)
            bases[space], images[space] = [F.normalize(drawn.to(rows.like), dim=1)], []
        for _ in range(self.steps):
            last = {space: basis[-1] for space, basis in bases.items()}
            products = [curvature.times(last) for curvature in curvatures]
            for space, basis in bases.items():
                image = torch.stack([p[space] for p in products]).mean(0)
                images[space].append(image)
                basis.append(_next_vector(torch.stack(basis, 1), image))
        lowest, highest = {}, {}
        for space, basis in bases.items():
            pair = torch.stack(basis[:-1], 1), torch.stack(images[space], 1)
            lowest[space], highest[space] = _extreme(*pair, 1.0), _extreme(*pair, -1.0)
        return lowest, highest


def _next_vector(basis: Tensor, image: Tensor) -> Tensor:
    """What of (units, D) images is new to bases (units, n, D), of norm 1; 0 where nothing is."""
    rest = image
    for _ in range(2):  # once leaves rounding errors that grow
        rest = rest - torch.einsum("und,un->ud", basis, torch.einsum("und,ud->un", basis, rest))
    length, whole = rest.norm(dim=1, keepdim=True), image.norm(dim=1, keepdim=True)
    new = length > 100 * torch.finfo(image.dtype).eps * whole
    return torch.where(new, rest / length.clamp(min=1e-30), 0.0)


def _extreme(basis: Tensor, images: Tensor, sign: float) -> Extreme:
    """The lowest (sign 1) or highest (-1) curvature in the span of each unit's basis."""
    small = sign * torch.einsum("und,umd->unm", basis, images).double()
    small = (small + small.mT) / 2
    empty = basis.norm(dim=2) < 0.5
    out_of_the_way = 1 + small.abs().sum((1, 2))
    values, vectors = torch.linalg.eigh(small + torch.diag_embed(empty * out_of_the_way[:, None]))
    chosen = torch.einsum("un,und->ud", vectors[:, :, 0].to(basis), basis)
    return Extreme(sign * values[:, 0], F.normalize(chosen, dim=1))
