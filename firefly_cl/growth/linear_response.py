"""How the loss answers to new units to first order: the matrix between their two sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from firefly_cl.errors import EditError
from firefly_cl.growth.candidates import WiderCandidates, propose
from firefly_cl.growth.criterion import Loss, finite
from firefly_cl.growth.execution import CandidateExecution
from firefly_cl.growth.surroundings import NewUnits, Surroundings
from firefly_cl.network import FireflyNet
from firefly_cl.network.execution import Streams
from firefly_cl.network.graph import Node, apply_map
from firefly_cl.network.layers import GrowableNorm
from firefly_cl.network.rows import growable_layer, own_block

RANK = 1e-6
"""Singular values below this share of the greatest count as 0."""

_STEP = 1e-4
_AVERAGED = {
    "max_pool2d": ("avg_pool2d", ("kernel_size", "stride", "padding", "ceil_mode")),
    "adaptive_max_pool2d": ("adaptive_avg_pool2d", ("output_size",)),
    "amax": ("mean", ("dim", "keepdim")),
}
"""What stands for a pooling that is not linear: its operation, and the attributes both have."""


class LinearResponse(CandidateExecution):
    """The network with new units whose response is linear in their incoming rows.

    For new units alone, an activation multiplies by its slope at 0 (that of ReLU is 1/2, the mean
    of both sides), a maximum is a mean, a product the mean of its factors, and a norm leaves its
    input as it is.
    """

    def step(self, node: Node, inputs: Sequence[Streams]) -> Streams:
        """One node; maps and products act linearly on new units."""
        ghosts = [streams["ghost"] for streams in inputs if "ghost" in streams]
        if node.kind not in ("map", "mul") or len(ghosts) < len(inputs):
            return super().step(node, inputs)
        rest = [{k: part for k, part in streams.items() if k != "ghost"} for streams in inputs]
        linear = (ghosts[0] + ghosts[1]) / 2 if node.kind == "mul" else linear_map(node, ghosts[0])
        return {**super().step(node, rest), "ghost": linear}

    def _ghost_norm(self, node: Node, norm: GrowableNorm, x: Tensor) -> Tensor:
        return x


def linear_map(node: Node, x: Tensor) -> Tensor:
    """The linear stand-in of a map node."""
    operation = node.attributes["operation"]
    if operation in _AVERAGED:
        name, kept = _AVERAGED[operation]
        if node.attributes.get("dilation", 1) not in (1, [1, 1]):
            raise EditError(
                f"{node.name} takes maxima with a dilation, for which there is no mean: choose "
                "another criterion"
            )
        attributes = {k: v for k, v in node.attributes.items() if k in kept}
        node = Node(node.name, "map", node.inputs, node.layout, {**attributes, "operation": name})
        return apply_map(node, x, False)
    slopes = zero_slopes(node, x)
    return apply_map(node, x, False) if slopes is None else x * (sum(slopes) / 2)


def zero_slopes(node: Node, like: Tensor) -> tuple[float, float] | None:
    """Slopes of an activation left and right of 0; None for a map that is no activation."""
    if node.attributes["operation"].endswith(("pool2d", "mean", "amax")):
        return None
    at = like.new_full((1, 1, *like.shape[2:]), _STEP, dtype=torch.float64)
    above, zero, below = (apply_map(node, t, False) for t in (at, 0 * at, -at))
    if above.shape != at.shape:
        return None
    left, right = (zero - below) / _STEP, (above - zero) / _STEP
    return float(left.mean()), float(right.mean())


def mean_gradients(
    net: FireflyNet,
    candidates: WiderCandidates,
    tensors: Sequence[Tensor],
    batches: Sequence[Any],
    loss: Loss,
) -> list[Tensor]:
    """Mean gradient over batches of the loss with respect to some tensors of the candidates.

    Raises DivergenceError for a loss that is not finite.
    """
    means = [torch.zeros_like(t) for t in tensors]
    if not means:
        return means

    def model(x: Tensor) -> Tensor:
        return CandidateExecution(net, candidates).run(x)

    for tensor in tensors:
        tensor.requires_grad_(True)
    try:
        for batch in batches:
            value = finite(loss(model, batch))
            found = torch.autograd.grad(value, tensors, allow_unused=True)
            for mean, gradient in zip(means, found, strict=True):
                if gradient is not None:
                    mean += gradient / len(batches)
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)
    return means


# --- the two sides of new units as vectors ----------------------------------------------------


def new_units(net: FireflyNet, space: str, incoming: Tensor, outgoing: Tensor) -> WiderCandidates:
    """WiderCandidates for new units of one space, their gates 0.

    incoming: (n, `incoming_size`), outgoing: (n, `outgoing_size`). Rows of layers that work unit
    by unit begin as the identity: 1 in the middle of the kernel.
    """
    n = len(incoming)
    found = propose(net, [space], n, 0, torch.Generator(), splits=False)
    made, at = found[space], 0
    for name, rows in made.incoming.items():
        layer = growable_layer(net, name)
        if layer.per_unit:
            _pass_through(rows)
            continue
        size = rows[0].numel() * (len(rows) // n)
        made.incoming[name] = incoming[:, at : at + size].reshape(rows.shape).to(rows)
        at += size
    at = 0
    for name, columns in made.outgoing.items():
        size = columns.numel() // n
        shape = (columns.shape[1], columns.shape[0], *columns.shape[2:])
        part = outgoing[:, at : at + size].reshape(shape).movedim(0, 1)
        made.outgoing[name] = part.to(columns).contiguous()
        at += size
    return found


def _pass_through(rows: Tensor) -> None:
    rows.zero_()
    middle = tuple(side // 2 for side in rows.shape[2:])
    for number, row in enumerate(rows):
        row[number % len(row)][middle] = 1.0


def as_vectors(outgoing: Sequence[Tensor], n: int) -> Tensor:
    """Columns of n new units in each consumer as one matrix (n, `outgoing_size`)."""
    return torch.cat([columns.movedim(1, 0).reshape(n, -1) for columns in outgoing], 1)


def incoming_size(net: FireflyNet, space: str) -> int:
    """Incoming weights of one unit in the producers that mix channels."""
    total = 0
    for node in net.producers(space):
        if growable_layer(net, node.name).per_unit:
            continue
        block = own_block(net, node.name)
        weights = block.from_old.shape[1] + block.from_own.shape[1]
        for side in block.from_own.shape[2:]:
            weights *= side
        total += weights * sum(s.repeat for s in node.layout if s.space == space)
    return total


def outgoing_size(net: FireflyNet, space: str) -> int:
    """Outgoing weights of one unit in all layers and heads that read it."""
    total = 0
    for node in net.consumers(space):
        layer, block = growable_layer(net, node.name), own_block(net, node.name)
        weights = block.rows
        for side in layer.kernel:
            weights *= side
        total += weights * sum(s.repeat for s in layer.reads if s.space == space)
    return total


class LinearUnits(LinearResponse, NewUnits):
    """New units alone, their response linear in their incoming rows."""


@torch.no_grad()
def response_matrix(
    net: FireflyNet, spaces: Sequence[str], surroundings: Surroundings, chunk: int = 256
) -> dict[str, Tensor]:
    """M = dL/d(incoming, outgoing) of one new unit of each space, (incoming, outgoing) float64.

    To first order in a small new unit with incoming weights x and outgoing weights w, the loss
    changes by x^T M w: M = E[x_(l-1) g_(l+1)^T] with the patches of convolutions as vectors, over
    all producers and consumers. Entry by entry it is the gradient of the outgoing weights of
    units with unit vectors as incoming ones; `chunk` of them run at a time, in all spaces at once.
    """
    sizes = {space: incoming_size(net, space) for space in spaces}
    rows: dict[str, list[Tensor]] = {space: [] for space in spaces}
    for first in range(0, max(sizes.values()), chunk):
        candidates: WiderCandidates = {}
        for space, size in sizes.items():
            if first >= size:
                continue
            units = torch.eye(size)[first : first + chunk]
            nothing = torch.zeros(len(units), outgoing_size(net, space))
            candidates |= new_units(net, space, units, nothing)
        for space, slopes in surroundings.slopes(candidates, LinearUnits).items():
            vectors = as_vectors(list(slopes.values()), candidates[space].news)
            rows[space].append(vectors.double())
    return {space: torch.cat(parts) for space, parts in rows.items()}


def linear_at_zero(net: FireflyNet, space: str) -> bool:
    """Whether units of a space with zero incoming weights answer linearly to a change of these.

    That takes activations with a slope at 0 (and the value 0 there), no norm, no maximum, no
    product, and no layer that works unit by unit. ReLU has no slope at 0: such a unit would never
    learn.
    """
    if net.norms(space) or any(growable_layer(net, n.name).per_unit for n in net.producers(space)):
        return False
    for node in net.nodes:
        if node.kind not in ("map", "mul") or all(s.space != space for s in node.layout):
            continue
        if node.kind == "mul" or node.attributes["operation"] in _AVERAGED:
            return False
        zero = torch.zeros((1, 1) if node.flat else (1, 1, 8, 8), dtype=torch.float64)
        slopes = zero_slopes(node, zero)
        if slopes is None:
            continue
        left, right = slopes
        if (
            abs(left - right) > 0.01
            or abs(right) < 0.01
            or bool(apply_map(node, zero, False).any())
        ):
            return False
    return True
