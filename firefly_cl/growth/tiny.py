"""TINY: new units that move a layer where the update of its own weights cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from firefly_cl.errors import ConfigurationError, EditError, NothingToGrow
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget, Candidate, room_to_double, select, step_cost
from firefly_cl.growth.candidates import WiderCandidates
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
from firefly_cl.growth.linear_response import (
    RANK,
    LinearResponse,
    as_vectors,
    incoming_size,
    mean_gradients,
    new_units,
    outgoing_size,
)
from firefly_cl.growth.settle import require_halvings, settle
from firefly_cl.network import FireflyNet
from firefly_cl.network.execution import Execution, Streams
from firefly_cl.network.graph import Node
from firefly_cl.network.layers import GrowableLayer
from firefly_cl.network.modes import evaluation
from firefly_cl.network.rebuild import Edit
from firefly_cl.network.rows import growable_layer, own_block

_ROUNDING = 100
"""How many times the precision a sum or a residual may be, and still be nothing but rounding."""


@CRITERIA.register("tiny")
@dataclass(frozen=True)
class Tiny:
    """TINY (Verbockhaven et al. 2024, arXiv 2405.19816).

    New unit k of a space between one producer and one consumer has the incoming weights
    S^(-1/2) u_k and the outgoing weights reach w_k, with S^(-1/2) N = U Lambda W^T, S = E[b b^T]
    and N = E[b V^T] (`bottleneck`); of (u_k, w_k) and (-u_k, -w_k), which differ behind an
    activation, the better. A layer between the two that works unit by unit begins as the identity.
    Units are chosen by reach lambda_k / cost; `gain` is then the slope of the loss along the unit
    as it is, with its activation and norm, times the reach that is left.
    halvings: how often the reach may be halved, as long as that lowers the loss.
    cutoff: eigenvalues of S below this share of the greatest count as 0. score_batches: used.
    """

    reach: float = 0.1
    cutoff: float = 1e-4
    score_batches: int = 2
    halvings: int = 6

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        require_positive("tiny", reach=self.reach)
        require_halvings("tiny", self.halvings)
        if not 0 < self.cutoff < 1 or self.score_batches < 1:
            raise ConfigurationError("cutoff of tiny must be in (0, 1), score_batches 1 or more")

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
        """One growth step; raises EditError, DivergenceError, and leaves `net` as it was then.

        Spaces with several consumers, several producers that mix channels, or products are passed
        over; EditError where there are no others. So are those that no own row of the task reads,
        for nothing there could be moved; NothingToGrow where there are no others.
        """
        require_batches(batches)
        costs, some = open_spaces(net, budget), batches[: self.score_batches]
        refused = {space: why for space in costs if (why := unsupported(net, space))}
        spaces = [space for space in costs if space not in refused]
        if not spaces:
            raise EditError(
                f"tiny cannot grow this network ({next(iter(refused.values()))}): choose "
                "gradmax, firefly or another criterion"
            )
        spaces = [space for space in spaces if _has_own_reader(net, space)]
        if not spaces:
            raise NothingToGrow(
                f"task {net.current} has no row of its own behind a space that tiny can grow: "
                "begin it with seed units or choose another criterion"
            )
        room = room_to_double(net, spaces)
        with evaluation(net):
            candidates: WiderCandidates = {}
            promised: dict[str, Tensor] = {}
            residuals = desired_moves(net, spaces, some, loss)
            for space in spaces:
                s, n = bottleneck(net, space, some, loss, residuals[space])
                rows, values, columns = solve(s, n, self.cutoff, room[space])
                if len(values):
                    promised[space] = values
                    candidates |= new_units(
                        net, space, torch.cat([rows, -rows]), torch.cat([columns, -columns])
                    )
            gates = [made.new_gates for made in candidates.values()]
            found = mean_gradients(net, candidates, gates, some, loss)
            slopes = dict(zip(candidates, found, strict=True))
            scored = []
            for space, values in promised.items():
                k, slope = len(values), slopes[space].cpu()
                better = torch.where(slope[k:] < slope[:k], k, 0) + torch.arange(k)
                scored += [
                    Candidate("new", space, unit, self.reach * value, costs[space])
                    for unit, value in zip(better.tolist(), values.tolist(), strict=True)
                ]
            kept = select(scored, budget, room, lambda more: step_cost(net, more, budget))

            def grown(net: FireflyNet, reach: float) -> list[Edit]:
                return commit(net, candidates, kept, reach)

            reach = settle(net, batches, loss, self.reach, self.halvings if kept else 0, grown)
            kept = [replace(c, gain=-reach * float(slopes[c.space][c.unit])) for c in kept]
            return Growth(grown(net, reach), kept, scored)


def unsupported(net: FireflyNet, space: str) -> str:
    """Why tiny cannot grow a space, naming a layer; empty if it can."""
    consumers = net.consumers(space)
    producers = [n for n in net.producers(space) if not growable_layer(net, n.name).per_unit]
    for what, nodes in (("writes", producers), ("reads", consumers)):
        if len(nodes) > 1:
            return f"not {nodes[0].name} alone, but {nodes[1].name} too {what} {space}"
    for node in net.nodes:
        if node.kind == "mul" and any(s.space == space for s in node.layout):
            return f"{node.name} multiplies units of {space}"
    places = [s for s in growable_layer(net, consumers[0].name).reads if s.space == space]
    return f"{consumers[0].name} reads {space} in two places" if len(places) > 1 else ""


def _has_own_reader(net: FireflyNet, space: str) -> bool:
    return own_block(net, net.consumers(space)[0].name).rows > 0


@dataclass
class Move:
    """What one batch wants of a layer's own rows: where they read, and the gradient there."""

    inputs: Tensor
    wanted: Tensor


class _Watching(Execution):
    """The network as it is, keeping what the task's own rows of some layers read and give."""

    def __init__(self, net: FireflyNet, watched: Sequence[str]) -> None:
        super().__init__(net, net.current)
        self.watched = watched
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def layer(self, node: Node, value: Streams) -> Streams:
        return self._keep(node, value, super().layer(node, value))

    def head(self, node: Node, value: Streams) -> Streams:
        return self._keep(node, value, super().head(node, value))

    def _keep(self, node: Node, value: Streams, out: Streams) -> Streams:
        if node.name in self.watched and "new" in out:
            parts = (self.read(node, value.get("old")), value.get("new"))
            block = own_block(self.net, node.name)
            widths = (block.from_old.shape[1], block.from_own.shape[1])
            read = [p.detach() for p, n in zip(parts, widths, strict=True) if p is not None and n]
            self.inputs[node.name] = torch.cat(read, 1)
            self.outputs[node.name] = out["new"]
        return out


def desired_moves(
    net: FireflyNet, spaces: Sequence[str], batches: Sequence[Any], loss: Loss
) -> dict[str, list[Tensor]]:
    """V of the consumer of each space, one tensor (B, rows, ...) for each batch.

    V = -dL/da - A b_l, the part of the wanted move of the consumer's own rows a that no change of
    their weights and bias brings: A is the least-squares solution over all batches and positions,
    b_l what the rows read (patches of it). Verbockhaven et al. 2024, arXiv 2405.19816.
    """
    consumers = {space: net.consumers(space)[0].name for space in spaces}
    moves: dict[str, list[Move]] = {name: [] for name in consumers.values()}
    for batch in batches:
        passes: list[_Watching] = []

        def model(x: Tensor, passes: list[_Watching] = passes) -> Tensor:
            passes.append(_Watching(net, list(moves)))
            return passes[-1].run(x)

        value = finite(loss(model, batch))
        outputs = [out for seen in passes for out in seen.outputs.values()]
        gradients = iter(torch.autograd.grad(value, outputs, allow_unused=True))
        for seen in passes:
            for name, output in seen.outputs.items():
                gradient = next(gradients)
                wanted = torch.zeros_like(output) if gradient is None else -gradient
                moves[name].append(Move(seen.inputs[name], wanted))
    residuals = {name: _residuals(net, name, found) for name, found in moves.items()}
    return {space: residuals[name] for space, name in consumers.items()}


@torch.no_grad()
def _residuals(net: FireflyNet, name: str, moves: Sequence[Move]) -> list[Tensor]:
    """What is left of the wanted moves of a layer's own rows after least squares.

    Where that is no more than rounding, it is 0.
    """
    layer, block, every = growable_layer(net, name), own_block(net, name), []
    for move in moves:
        patches = _as_rows(layer.apply_weight(move.inputs, _units(layer, move.inputs), None))
        if block.bias is not None:
            patches = torch.cat([patches, patches.new_ones(1, patches.shape[1])])
        every.append((patches, _as_rows(move.wanted)))
    if not every:
        return []
    gram = torch.stack([patches @ patches.T for patches, _ in every]).sum(0).double()
    cross = torch.stack([patches @ wanted.T for patches, wanted in every]).sum(0).double()
    eps = torch.finfo(every[0][0].dtype).eps
    solution = (torch.linalg.pinv(gram, hermitian=True, rtol=eps * len(gram)) @ cross).to(
        every[0][0]
    )
    left = []
    for (patches, wanted), move in zip(every, moves, strict=True):
        rest = wanted - solution.T @ patches
        if float(rest.norm()) < _ROUNDING * eps * float(wanted.norm()):
            rest.zero_()
        left.append(_as_maps(rest, move.wanted))
    return left


def _units(layer: GrowableLayer, x: Tensor) -> Tensor:
    """A weight whose output channels are the entries of the patches that a layer reads."""
    size = x.shape[1] * math.prod(layer.kernel)
    return torch.eye(size).to(x).view(size, x.shape[1], *layer.kernel)


def _as_rows(x: Tensor) -> Tensor:
    """(B, C, ...) as (C, B x positions)."""
    return x.movedim(1, 0).reshape(x.shape[1], -1)


def _as_maps(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(like.shape[1], like.shape[0], *like.shape[2:]).movedim(0, 1)


class _Collecting(LinearResponse):
    """Keeps what the one consumer of new units sees of them."""

    seen: Tensor

    def own_rows(self, node: Node, layer: GrowableLayer, value: Streams) -> Tensor | None:
        if "ghost" in value:
            self.seen = value["ghost"]
        return super().own_rows(node, layer, value)


def bottleneck(
    net: FireflyNet, space: str, batches: Sequence[Any], loss: Loss, residuals: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """S = E[b b^T] (incoming, incoming) and N = E[b V^T] (incoming, outgoing), float64.

    b: patches of the producer's input as they reach the consumer, by the linear response of new
    units (pooling averages them, activations and norms leave their direction). S is the mean over
    images and positions. In N each tap of the consumer's kernel counts as an output of its own,
    b standing where that tap reads; S is the same for all taps, products of different taps are
    left out. Where N is no more than rounding, it is 0. residuals: V, of `desired_moves`.
    """
    layer, size = growable_layer(net, net.consumers(space)[0].name), incoming_size(net, space)
    candidates = new_units(
        net, space, torch.eye(size), torch.zeros(size, outgoing_size(net, space))
    )
    (columns,) = candidates[space].outgoing.values()
    second, count = columns.new_zeros(size, size).double(), 0
    left, crossed, most = iter(residuals), torch.zeros_like(columns).double(), 0.0
    for batch in batches:
        passes: list[_Collecting] = []

        def model(x: Tensor, passes: list[_Collecting] = passes) -> Tensor:
            passes.append(_Collecting(net, candidates))
            return passes[-1].run(x)

        with torch.no_grad():
            loss(model, batch)
        for seen in (found.seen for found in passes):
            by_unit = seen.reshape(len(seen), size, -1).movedim(1, 0).reshape(size, -1)
            second += by_unit @ by_unit.T
            count += by_unit.shape[1]
            weight, wanted = torch.zeros_like(columns).requires_grad_(), next(left)
            with torch.enable_grad():
                together = (layer.apply_weight(seen, weight, None) * wanted).sum()
            crossed += torch.autograd.grad(together, weight)[0] / len(batches)
            most += float(seen.norm() * wanted.norm()) / len(batches)
    if float(crossed.norm()) < _ROUNDING * torch.finfo(columns.dtype).eps * most:
        crossed.zero_()
    return second / count, as_vectors([crossed], size)


def solve(
    second: Tensor, crossed: Tensor, cutoff: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Incoming weights (k, incoming), lambda (k,), outgoing weights (k, outgoing) of new units.

    S^(-1/2) N = U Lambda W^T over the eigenvectors of S above `cutoff` of its greatest.
    """
    found, vectors = torch.linalg.eigh(second)
    usable = found > cutoff * found[-1]
    root = vectors[:, usable] * found[usable].rsqrt() @ vectors[:, usable].T
    left, values, right = torch.linalg.svd(root @ crossed, full_matrices=False)
    k = min(most, int((values > RANK * values[:1]).sum()))
    return (root @ left[:, :k]).T, values[:k], right[:k]
