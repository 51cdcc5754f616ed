"""Rows of new units moved to where the gradient of their outgoing weights is greatest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from firefly_cl.growth.candidates import SpaceCandidates, WiderCandidates
from firefly_cl.growth.linear_response import as_vectors
from firefly_cl.growth.surroundings import Surroundings
from firefly_cl.network import FireflyNet
from firefly_cl.network.rows import growable_layer


def ascend(
    net: FireflyNet, candidates: WiderCandidates, surroundings: Surroundings, steps: int
) -> None:
    """Gradient ascent on |dL/d outgoing| of each new unit, its outgoing weights being zero.

    Rows of layers that mix channels move by 1/2, 1/3, ... of their norm, which they keep; each
    unit ends with the best rows on its way. Behind norms and ReLU no singular vector is the
    answer.
    """
    best: dict[str, tuple[Tensor, Tensor]] = {}
    for step in range(steps + 1):
        last = step == steps
        for space, (norms, slopes) in _slopes(net, candidates, surroundings, last).items():
            made = candidates[space]
            now = dense_vectors(net, made)
            had, rows = best.get(space, (norms - 1, now))
            better = norms > had
            best[space] = (
                torch.where(better, norms, had),
                torch.where(better[:, None], now, rows),
            )
            if slopes is None:
                continue
            length = now.norm(dim=1, keepdim=True)
            up = slopes / slopes.norm(dim=1, keepdim=True).clamp(min=1e-30)
            moved = now + length * up / (step + 2)
            _put(_rows(net, made), moved * (length / moved.norm(dim=1, keepdim=True)))
    for space, (_, rows) in best.items():
        _put(_rows(net, candidates[space]), rows)


def _slopes(
    net: FireflyNet, candidates: WiderCandidates, surroundings: Surroundings, last: bool
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Gradient norm of each unit's outgoing weights (n,), and its slope by the rows (n, ...).

    last: the slope is not needed.
    """
    rows = {space: list(_rows(net, made).values()) for space, made in candidates.items()}
    every_row = [tensor for tensors in rows.values() for tensor in tensors]
    for tensor in every_row:
        tensor.requires_grad_(not last)
    try:
        norms = {
            space: as_vectors(list(found.values()), candidates[space].news)
            .square()
            .sum(1)
            .clamp(min=1e-30)
            .sqrt()
            for space, found in surroundings.slopes(candidates).items()
        }
        if last:
            return {space: (norm, None) for space, norm in norms.items()}
        sums = torch.cat(list(norms.values())).sum()
        slopes = iter(torch.autograd.grad(sums, every_row, materialize_grads=True))
    finally:
        for tensor in every_row:
            tensor.requires_grad_(False)
    return {
        space: (norms[space].detach(), _vectors([next(slopes) for _ in tensors], made.news))
        for (space, tensors), made in zip(rows.items(), candidates.values(), strict=True)
    }


def _rows(net: FireflyNet, made: SpaceCandidates) -> dict[str, Tensor]:
    return {k: v for k, v in made.incoming.items() if not growable_layer(net, k).per_unit}


def dense_vectors(net: FireflyNet, made: SpaceCandidates) -> Tensor:
    """Rows of new units in the layers that mix channels, (n, incoming weights)."""
    return _vectors(list(_rows(net, made).values()), made.news)


def _vectors(rows: Sequence[Tensor], units: int) -> Tensor:
    return torch.cat([value.reshape(units, -1) for value in rows], 1)


def _put(rows: dict[str, Tensor], vectors: Tensor) -> None:
    sizes = [value.numel() // len(vectors) for value in rows.values()]
    for value, part in zip(rows.values(), torch.split(vectors, sizes, 1), strict=True):
        value.copy_(part.reshape(value.shape))
