"""Candidates beside the network: splits, unlocked copies and new units, and inserted layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from firefly_cl.network import FireflyNet
from firefly_cl.network.deeper import Deeper, deeper_layer
from firefly_cl.network.graph import Node
from firefly_cl.network.layers import GrowableLayer, Statistics
from firefly_cl.network.rebuild import Rows
from firefly_cl.network.rows import (
    copied_norm,
    copied_rows,
    drawn_rows,
    growable_layer,
    own_block,
    own_channels,
)
from firefly_cl.network.space import channel_count


class Directions(NamedTuple):
    """Values that a search moves, unit by unit.

    values: tensors with `units` units in dimension `dim`. length: norm that each unit keeps, over
    all the tensors together. orthogonal: whether the units are kept orthogonal to each other.
    """

    values: Sequence[Tensor]
    dim: int
    units: int
    length: float = 1.0
    orthogonal: bool = False


@dataclass
class SpaceCandidates:
    """The candidates of one space.

    copies: numbers of older units to unlock. directions: per producer, (rows of splits then of
    copies, columns, ...), each unit's d. incoming: per producer, rows of new units. outgoing: per
    consumer, (rows, columns of new units, ...), unit by unit, also where a layer reads the space
    in several places. row_length: norm of d and incoming, column_length: of outgoing, those that
    the task's own units here have in the mean. split_gates (splits,), copy_gates (copies,),
    new_gates (news,): the eps of each candidate. originals, original_norms: what copies start
    from, per producer and norm. statistics: per norm, those of the last batch on copies, then on
    new units.
    """

    splits: int
    copies: Tensor
    news: int
    directions: dict[str, Tensor]
    incoming: dict[str, Tensor]
    outgoing: dict[str, Tensor]
    row_length: float
    column_length: float
    split_gates: Tensor
    copy_gates: Tensor
    new_gates: Tensor
    originals: dict[str, Rows]
    original_norms: dict[str, Statistics]
    statistics: dict[str, Statistics]

    def searched(self, incoming: bool = True) -> list[Directions]:
        """What a search can move: d of splits and copies, v of new units, and u if `incoming`."""
        moving = self.splits + len(self.copies)
        rows = Directions(list(self.incoming.values()), 0, self.news, self.row_length, True)
        return [
            Directions(list(self.directions.values()), 0, moving, self.row_length),
            Directions(list(self.outgoing.values()), 1, self.news, self.column_length, True),
            *([rows] if incoming else []),
        ]

    def gates(self) -> list[Tensor]:
        """The gates of splits, copies and new units."""
        return [self.split_gates, self.copy_gates, self.new_gates]

    def kinds(self) -> dict[str, Sequence[int]]:
        """Numbers of the candidates by kind, in the order of the gates."""
        copies = [int(unit) for unit in self.copies]
        return {"split": range(self.splits), "unlock": copies, "new": range(self.news)}

    @property
    def ghosts(self) -> int:
        """Units that a forward pass adds: two for a split, one for a copy or a new unit."""
        return 2 * self.splits + len(self.copies) + self.news


@dataclass
class LayerCandidates:
    """The hidden units that an inserted layer could have.

    made: the layer that would be inserted. enter, leave: its layers, without rows. incoming:
    (hidden, columns, ...) over the older columns that the task reads, then its own. outgoing:
    (own channels, hidden, ...). hidden_gates: (hidden,), the eps of each. statistics: of the
    hidden units in the last batch.
    """

    made: Deeper
    enter: GrowableLayer
    leave: GrowableLayer
    incoming: Tensor
    outgoing: Tensor
    hidden_gates: Tensor
    statistics: Statistics | None = None

    def searched(self, incoming: bool = True) -> list[Directions]:
        """What a search can move: v of the hidden units, and u if `incoming`."""
        hidden = len(self.hidden_gates)
        rows = Directions([self.incoming], 0, hidden, math.sqrt(2.0), True)
        return [Directions([self.outgoing], 1, hidden, 1.0, True), *([rows] if incoming else [])]

    def gates(self) -> list[Tensor]:
        """The gates of the hidden units."""
        return [self.hidden_gates]

    def kinds(self) -> dict[str, Sequence[int]]:
        """Numbers of the candidates by kind, in the order of the gates."""
        return {"deeper": range(len(self.hidden_gates))}


Candidates = Mapping[str, SpaceCandidates | LayerCandidates]
"""What could be added, by the name of a space or of the node that a layer would stand behind."""


WiderCandidates = dict[str, SpaceCandidates]
"""Those of spaces alone."""


def propose(
    net: FireflyNet,
    spaces: Sequence[str],
    news: int,
    copies: int,
    generator: torch.Generator,
    splits: bool = True,
) -> dict[str, SpaceCandidates]:
    """Every own unit as a split, up to `copies` older units to unlock, `news` new units a space.

    Directions are drawn with the norms that the weights of the task's own units there have. So a
    gate is a share of these, nothing depends on the scale of weights before a norm, and new units
    learn as fast as others: behind a norm, long rows learn slowly. Gates are 0. Older units whose
    rows read what the task does not read cannot be unlocked and are passed over.
    """
    found = {}
    for name in spaces:
        n_splits = net.spaces[name].width(net.current) if splits else 0
        found[name] = _propose_in(net, name, n_splits, news, copies, generator)
    return found


def _propose_in(
    net: FireflyNet, name: str, splits: int, news: int, copies: int, generator: torch.Generator
) -> SpaceCandidates:
    able = _unlockable(net, name)
    drawn = torch.randperm(len(able), generator=generator)[:copies]
    chosen = able[drawn].sort().values
    like = next(net.parameters()).detach()
    producers, consumers = net.producers(name), net.consumers(name)
    directions, incoming, outgoing = {}, {}, {}
    rows = drawn_rows(net, name, splits + len(chosen) + news, generator)
    for node in producers:
        weight = rows[node.name].weight
        moving = (splits + len(chosen)) * _repeat(node, name)
        directions[node.name] = weight[:moving].clone()
        incoming[node.name] = weight[moving:].clone()
    for node in consumers:
        layer = net.layers[node.name]
        assert isinstance(layer, GrowableLayer)
        block = layer.block(net.current)
        assert block is not None
        repeat = sum(s.repeat for s in layer.reads if s.space == name)
        shape = (block.rows, news * repeat, *layer.kernel)
        outgoing[node.name] = torch.randn(shape, generator=generator).to(like)
    made = SpaceCandidates(
        splits,
        chosen,
        news,
        directions,
        incoming,
        outgoing,
        *_lengths(net, name),
        like.new_zeros(splits),
        like.new_zeros(len(chosen)),
        like.new_zeros(news),
        {node.name: copied_rows(net, node.name, name, chosen) for node in producers},
        {node.name: copied_norm(net, node.name, name, chosen) for node in net.norms(name)},
        {},
    )
    project(made.searched())
    return made


def _lengths(net: FireflyNet, space: str) -> tuple[float, float]:
    """Root mean square norm of the own units' rows and of their outgoing columns in a space.

    1 where there are none, or all are zero.
    """
    own = net.spaces[space].width(net.current)
    if not own:
        return 1.0, 1.0
    rows, columns = 0.0, 0.0
    for node in net.producers(space):
        block = own_block(net, node.name)
        at = own_channels(net, node.layout, space, torch.arange(own)).to(block.from_own.device)
        for part in (block.from_old, block.from_own):
            rows += float(part.detach()[at].square().sum())
    for node in net.consumers(space):
        block, reads = own_block(net, node.name), growable_layer(net, node.name).reads
        at = own_channels(net, reads, space, torch.arange(own)).to(block.from_own.device)
        columns += float(block.from_own.detach()[:, at].square().sum())
    return math.sqrt(rows / own) or 1.0, math.sqrt(columns / own) or 1.0


def _unlockable(net: FireflyNet, space: str) -> Tensor:
    """Older units that the task reads along with all that their rows read."""
    reads, possible = net.tasks[-1].reads, []
    for owner in net.spaces[space].owners(net.current):
        needed = net.read_units(owner)
        closed = all(
            bool(torch.isin(needed[s.space], reads[s.space]).all())
            for node in net.producers(space)
            if isinstance(layer := net.layers[node.name], GrowableLayer) and not layer.per_unit
            for s in layer.reads
        )
        if closed:
            owned = net.spaces[space].owned(owner)
            possible.append(owned[torch.isin(owned, reads[space])])
    return torch.cat(possible) if possible else torch.zeros(0, dtype=torch.int64)


def _repeat(node: Node, space: str) -> int:
    return sum(s.repeat for s in node.layout if s.space == space)


def propose_layers(
    net: FireflyNet, places: Sequence[str], hidden: int, generator: torch.Generator
) -> dict[str, LayerCandidates]:
    """`hidden` units of a layer z + h(z) behind each of some nodes, drawn as new units are."""
    return {place: _propose_behind(net, place, hidden, generator) for place in places}


def _propose_behind(
    net: FireflyNet, place: str, hidden: int, generator: torch.Generator
) -> LayerCandidates:
    made = deeper_layer(net, place)
    layout, like = made.after.layout, next(net.parameters()).detach()
    enter = GrowableLayer(made.enter, layout)
    leave = GrowableLayer(made.leave, made.enter.layout)
    own = channel_count(layout, net.owned_units(net.current))
    columns = channel_count(layout, net.tasks[-1].reads) + own
    incoming = torch.randn(hidden, columns, *enter.kernel, generator=generator)
    incoming *= math.sqrt(2.0 / max(incoming[0].numel(), 1))
    outgoing = torch.randn(own, hidden, *leave.kernel, generator=generator)
    found = LayerCandidates(
        made, enter, leave, incoming.to(like), outgoing.to(like), like.new_zeros(hidden)
    )
    project(found.searched())
    return found


@torch.no_grad()
def project(directions: Sequence[Directions]) -> None:
    """Give every unit's directions their norm again, over all layers that have some of them.

    Those that are to be orthogonal become the nearest such (polar decomposition), where they have
    as many numbers as there are units.
    """
    for values, dim, units, length, orthogonal in directions:
        if not (units and values):
            continue
        if orthogonal:
            _orthogonalise(values, dim, units)
        scale = length / unit_lengths(values, dim, units).clamp(min=1e-12)
        for value in values:
            value *= by_unit(scale, value, dim)


def _orthogonalise(values: Sequence[Tensor], dim: int, units: int) -> None:
    parts = [v.movedim(dim, 0).reshape(units, -1) for v in values]
    together = torch.cat(parts, 1)
    if units > together.shape[1] or not together.isfinite().all():
        return
    left, _, right = torch.linalg.svd(together, full_matrices=False)
    nearest = torch.split(left @ right, [part.shape[1] for part in parts], 1)
    for value, part in zip(values, nearest, strict=True):
        moved = value.movedim(dim, 0)
        moved.copy_(part.reshape(moved.shape))


def unit_lengths(values: Sequence[Tensor], dim: int, units: int) -> Tensor:
    """Norm of every unit's rows (dim 0) or columns (dim 1) over all layers, (units,)."""
    squares = [v.movedim(dim, 0).reshape(units, -1).square().sum(1) for v in values]
    return torch.stack(squares).sum(0).sqrt()


def join_places(places: Sequence[Tensor], units: int) -> Tensor:
    """Channels of some units, dimension 1, from each place of a layout: unit by unit instead."""
    if len(places) == 1:
        return places[0]
    parts = [p.reshape(len(p), units, -1, *p.shape[2:]) for p in places if p.shape[1]]
    return torch.cat(parts, 2).flatten(1, 2) if parts else places[0]


def part_places(columns: Tensor, repeats: Sequence[int], units: int) -> Tensor:
    """Columns unit by unit, dimension 1, in the order of a layout: place by place instead.

    repeats: of each place. The inverse of `join_places`.
    """
    if len(repeats) == 1:
        return columns
    by_unit = columns.reshape(len(columns), units, -1, *columns.shape[2:])
    parts = torch.split(by_unit, list(repeats), 2)
    return torch.cat([part.flatten(1, 2) for part in parts], 1)


def by_unit(factors: Tensor, value: Tensor, dim: int) -> Tensor:
    """A factor for each unit, (units,), such that it multiplies the unit's part of `value`."""
    shape = [1] * value.dim()
    shape[dim] = -1
    return factors.repeat_interleave(value.shape[dim] // max(len(factors), 1)).view(shape)
