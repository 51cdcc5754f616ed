"""Splitting matrices: how the loss curves when the rows of one unit are drawn apart.

Paper: Liu, Wu, Wang 2019, "Splitting Steepest Descent for Growing Neural Architectures", arXiv
1910.02366. A unit's channels depend on its own rows alone while what they read is held, so that
the Hessian of

    Phi(theta) = sum over what reads the units of <dL/d read, read(theta)>

has one block for each unit, its splitting matrix; one pass multiplies all of them by vectors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from firefly_cl.growth.criterion import Loss, finite
from firefly_cl.network import FireflyNet
from firefly_cl.network.execution import Execution, Streams
from firefly_cl.network.graph import Node, apply_map
from firefly_cl.network.layers import Block
from firefly_cl.network.rows import own_block, own_channels

BETA = 3.0
"""Of the softplus whose second derivative stands for that of a kink (Liu et al. 2019)."""

KINKS: dict[str, Callable[[Mapping[str, Any]], list[tuple[float, float]]]] = {
    "relu": lambda _: [(0.0, 1.0)],
    "relu6": lambda _: [(0.0, 1.0), (6.0, -1.0)],
    "abs": lambda _: [(0.0, 2.0)],
    "leaky_relu": lambda a: [(0.0, 1.0 - a.get("negative_slope", 0.01))],
    "hardtanh": lambda a: [(a.get("min_val", -1.0), 1.0), (a.get("max_val", 1.0), -1.0)],
    "hardsigmoid": lambda _: [(-3.0, 1 / 6), (3.0, -1 / 6)],
}
"""(place, jump of the slope) of the activations that are straight lines between kinks."""

Vectors = Mapping[str, Tensor]
"""For each space one vector a unit, (own units, rows' numbers in all its producers)."""


class UnitRows:
    """The rows that own units of one space have in all its producers, as one vector a unit."""

    def __init__(self, net: FireflyNet, space: str) -> None:
        self.space = space
        self.units = net.spaces[space].width(net.current)
        self.blocks: dict[str, Block] = {}
        self._at: dict[str, Tensor] = {}
        for node in net.producers(space):
            block = self.blocks[node.name] = own_block(net, node.name)
            at = own_channels(net, node.layout, space, torch.arange(self.units))
            self._at[node.name] = at.to(block.from_own.device)

    @property
    def like(self) -> Tensor:
        """A tensor of the rows' type and device."""
        return next(iter(self.blocks.values())).from_own.detach()

    @property
    def length(self) -> int:
        """Numbers in a unit's vector."""
        if not self.units:
            return 0
        rows = [(len(at) // self.units, self._shape(name)) for name, at in self._at.items()]
        return sum(repeat * math.prod(shape) for repeat, shape in rows)

    def stack(self, values: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Vectors of the units, (units, length), from (from_old, from_own) of whole layers."""
        parts = []
        for name, at in self._at.items():
            both = torch.cat(values[name], 1)
            parts.append(both.index_select(0, at).reshape(self.units, -1))
        return torch.cat(parts, 1)

    def unstack(self, vectors: Tensor) -> dict[str, Tensor]:
        """Rows by producer, (n x channels per unit, columns, ...), from vectors (n, length)."""
        rows, base = {}, 0
        for name, at in self._at.items():
            shape = self._shape(name)
            repeat = len(at) // self.units
            end = base + repeat * math.prod(shape)
            rows[name] = vectors[:, base:end].reshape(len(vectors) * repeat, *shape)
            base = end
        return rows

    def _shape(self, name: str) -> tuple[int, ...]:
        block = self.blocks[name]
        columns = block.from_old.shape[1] + block.from_own.shape[1]
        return (columns, *block.from_own.shape[2:])


class Curvature:
    """The splitting matrices of some spaces' own units on one batch, as a linear map.

    The network is run in evaluation mode and only read; what its units read is kept in memory.
    Raises DivergenceError.
    """

    def __init__(self, net: FireflyNet, spaces: Sequence[str], batch: Any, loss: Loss) -> None:
        self.rows = {space: UnitRows(net, space) for space in spaces}
        runs: list[tuple[Tensor, _Influence]] = []

        def model(x: Tensor) -> Tensor:
            runs.append((x, _Influence(net, net.current)))
            return runs[-1][1].run(x)

        with torch.enable_grad():
            value = finite(loss(model, batch))
            probes = [probe for _, run in runs for probe in run.probes]
            slopes = torch.autograd.grad(value, probes, allow_unused=True)
            value = value.detach()
            reads = []
            for x, _ in runs:
                response = _Response(net, net.current)
                response.run(x.detach())
                reads += response.reads
            self._parameters = {
                name: (block.from_old, block.from_own)
                for rows in self.rows.values()
                for name, block in rows.blocks.items()
            }
            phi = value.new_zeros(())
            for slope, read in zip(slopes, reads, strict=True):
                if slope is not None:
                    phi = phi + (slope.to(read) * read).sum()
            self._first = self._gradients(phi, create_graph=True)

    def times(self, vectors: Vectors) -> dict[str, Tensor]:
        """S v of every unit of the spaces that `vectors` has, in its shapes."""
        with torch.enable_grad():
            along = sum(
                (self.rows[space].stack(self._first) * v).sum() for space, v in vectors.items()
            )
        found = self._gradients(along)
        return {space: self.rows[space].stack(found).detach() for space in vectors}

    def _gradients(
        self, value: Any, create_graph: bool = False
    ) -> dict[str, tuple[Tensor, Tensor]]:
        pairs = self._parameters
        flat = [p for pair in pairs.values() for p in pair]
        found: Sequence[Tensor | None] = [None] * len(flat)
        if isinstance(value, Tensor) and value.requires_grad:
            wanted = [p for p in flat if p.requires_grad]
            some = iter(
                torch.autograd.grad(
                    value, wanted, create_graph=create_graph, retain_graph=True, allow_unused=True
                )
            )
            found = [next(some) if p.requires_grad else None for p in flat]
        full = [torch.zeros_like(p) if g is None else g for p, g in zip(flat, found, strict=True)]
        return {name: (full[2 * i], full[2 * i + 1]) for i, name in enumerate(pairs)}


class _Reading(Execution, ABC):
    """The newest task's pass in evaluation mode, with a look at what its layers read of it."""

    def __init__(self, net: FireflyNet, task: int) -> None:
        super().__init__(net, task)
        self.training = False

    def layer(self, node: Node, value: Streams) -> Streams:
        """Units of a layer that works unit by unit depend on what they read: it is no reader."""
        if self.growable(node).per_unit:
            return super().layer(node, value)
        return super().layer(node, self.looked_at(value))

    def head(self, node: Node, value: Streams) -> Streams:
        """The head reads too."""
        return super().head(node, self.looked_at(value))

    def looked_at(self, value: Streams) -> Streams:
        """The streams, the task's own passed through `look`."""
        return {**value, "new": self.look(value["new"])} if "new" in value else value

    @abstractmethod
    def look(self, read: Tensor) -> Tensor:
        """What a reader gets for the own channels that it reads."""


class _Influence(_Reading):
    """Probes, all zero, whose gradients are dL/d read for each reader by itself."""

    def __init__(self, net: FireflyNet, task: int) -> None:
        super().__init__(net, task)
        self.probes: list[Tensor] = []

    def look(self, read: Tensor) -> Tensor:
        """The channels with a probe added."""
        self.probes.append(torch.zeros_like(read, requires_grad=True))
        return read + self.probes[-1]


class _Response(_Reading):
    """What is read as a function of the units' own rows, their inputs held, kinks smoothed."""

    def __init__(self, net: FireflyNet, task: int) -> None:
        super().__init__(net, task)
        self.reads: list[Tensor] = []

    def look(self, read: Tensor) -> Tensor:
        """The channels as plain numbers; as a function they are kept."""
        self.reads.append(read)
        return read.detach()

    def step(self, node: Node, inputs: Sequence[Streams]) -> Streams:
        """Activations with kinks become parabolas at each point: value, slope, softplus' bend."""
        out = super().step(node, inputs)
        attributes = dict(node.attributes)
        kinks = KINKS.get(attributes.get("operation", "")) if node.kind == "map" else None
        if kinks is None or "new" not in out:
            return out
        x = inputs[0]["new"]
        at = x.detach().requires_grad_()
        value = apply_map(node, at, False)
        (slope,) = torch.autograd.grad(value.sum(), at)
        bend = torch.zeros_like(slope)
        for place, jump in kinks(attributes):
            s = torch.sigmoid(BETA * (x.detach() - place))
            bend += jump * BETA * s * (1 - s)
        move = x - x.detach()
        out["new"] = value.detach() + slope * move + bend / 2 * move.square()
        return out
