"""Candidate units beside the network: splits, unlocked copies and new units with their gates.

They are run by ordinary convolutions with stacked weights in streams of their own; the network
itself is only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from firefly_cl.network import FireflyNet, Selection
from firefly_cl.network.execution import Execution, Streams
from firefly_cl.network.graph import Node
from firefly_cl.network.layers import GrowableLayer, GrowableNorm, Statistics
from firefly_cl.network.rebuild import Rows
from firefly_cl.network.rows import copied_norm, copied_rows, drawn_rows, own_channels
from firefly_cl.network.space import positions


@dataclass
class SpaceCandidates:
    """The candidates of one space.

    copies: numbers of older units to unlock. directions: per producer, (rows of splits then of
    copies, columns, ...), each unit's d. incoming: per producer, rows of new units. outgoing: per
    consumer, (rows, columns of new units, ...). split_gates (splits,), copy_gates (copies,),
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
    split_gates: Tensor
    copy_gates: Tensor
    new_gates: Tensor
    originals: dict[str, Rows]
    original_norms: dict[str, Statistics]
    statistics: dict[str, Statistics]

    def tensors(self) -> list[Tensor]:
        """The directions, in a fixed order."""
        return [*self.directions.values(), *self.incoming.values(), *self.outgoing.values()]

    def gates(self) -> list[Tensor]:
        """The gates of splits, copies and new units."""
        return [self.split_gates, self.copy_gates, self.new_gates]

    @property
    def ghosts(self) -> int:
        """Units that a forward pass adds: two for a split, one for a copy or a new unit."""
        return 2 * self.splits + len(self.copies) + self.news


Candidates = dict[str, SpaceCandidates]


def propose(
    net: FireflyNet,
    spaces: Sequence[str],
    news: int,
    copies: int,
    generator: torch.Generator,
    splits: bool = True,
) -> Candidates:
    """Every own unit as a split, up to `copies` older units to unlock, `news` new units a space.

    Directions are drawn with norm 1 (incoming rows of new units by He), gates are 0. Older units
    whose rows read what the task does not read cannot be unlocked and are passed over.
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
        like.new_zeros(splits),
        like.new_zeros(len(chosen)),
        like.new_zeros(news),
        {node.name: copied_rows(net, node.name, name, chosen) for node in producers},
        {node.name: copied_norm(net, node.name, name, chosen) for node in net.norms(name)},
        {},
    )
    project(made)
    return made


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


@torch.no_grad()
def project(candidates: SpaceCandidates) -> None:
    """Scale every unit's direction, and every new unit's outgoing weights, to norm 1.

    The norm is taken over all layers that the unit has rows (or columns) in.
    """
    moving, news = candidates.splits + len(candidates.copies), candidates.news
    unit_norm(candidates.directions, 0, moving)
    unit_norm(candidates.outgoing, 1, news)


def unit_norm(values: dict[str, Tensor], dim: int, units: int) -> None:
    """Scale the rows (dim 0) or columns (dim 1) of each unit, over all layers, to norm 1."""
    if not units or not values:
        return
    total = torch.zeros(units)
    for value in values.values():
        by_unit = value.movedim(dim, 0).reshape(units, -1)
        total = total.to(value) + by_unit.square().sum(1)
    scale = total.sqrt().clamp(min=1e-12).reciprocal()
    for value in values.values():
        repeat = value.shape[dim] // units
        shape = [1] * value.dim()
        shape[dim] = -1
        value *= scale.repeat_interleave(repeat).view(shape)


class CandidateExecution(Execution):
    """The network with its candidates, for the newest task.

    fraction: None to let gates and directions act as they are (step 1). Otherwise the
    candidates act with their gates as they are, while the gradient with respect to a split's or
    a copy's gate is taken at `fraction` of `reach`, on the path from no change to a whole one
    (step 2: the mean over fractions is the score). Gradients on a new unit's gate do not depend
    on where they are taken.
    """

    def __init__(
        self,
        net: FireflyNet,
        candidates: Candidates,
        fraction: float | None = None,
        reach: float = 0.0,
    ) -> None:
        super().__init__(net, net.current)
        self.training = False
        self.candidates = candidates
        self.fraction = fraction
        self.reach = reach

    def ghost_units(self) -> Selection:
        """Numbers of the ghosts of each space."""
        return {
            name: torch.arange(self.candidates[name].ghosts if name in self.candidates else 0)
            for name in self.net.spaces
        }

    def layer(self, node: Node, value: Streams) -> Streams:
        """Own rows, and the halves of splits with them, see the candidates' changes.

        The rows of copies and of new units see the network as it is.
        """
        layer, out = self.growable(node), Streams()
        old = value.get("old")
        if old is not None and node.name in self.plan.weights:
            with torch.set_grad_enabled(self.carries_gradient("old")):
                out["old"] = layer.apply_frozen(old, *self.plan.weight(node.name))
        rows = self.own_rows(node, layer, value)
        if rows is not None:
            out["new"] = rows
        for stream in self.ghost_streams():
            ghosts = self.ghost_rows(node, layer, value, stream, rows)
            if ghosts is not None:
                out[stream] = ghosts
        return out

    def head(self, node: Node, value: Streams) -> Streams:
        """The head sees the candidates' changes."""
        logits = self.own_rows(node, self.growable(node), value)
        assert logits is not None
        return {"new": logits}

    def ghost_streams(self) -> list[str]:
        """The candidates as they act, and where the gradient is taken if any has a path."""
        moving = any(space.splits or len(space.copies) for space in self.candidates.values())
        return ["ghost", "path"] if self.fraction is not None and moving else ["ghost"]

    # --- candidates as producers ----------------------------------------------------------------

    def ghost_rows(
        self, node: Node, layer: GrowableLayer, value: Streams, stream: str, rows: Tensor | None
    ) -> Tensor | None:
        """Output of the candidates' rows of a layer, in the order of its layout.

        rows: of the task's own units, which the halves of their splits move away from.
        """
        if not any(s.space in self.candidates for s in layer.writes):
            return None
        weight, bias = self._stacked(node, layer, stream)
        if not len(weight):
            return None
        if layer.per_unit:
            through = value.get(stream)
            return None if through is None else layer.apply_weight(through, weight, bias)
        old, new = self.read(node, value.get("old")), value.get("new")
        n_old = layer.block(self.task).from_old.shape[1]  # type: ignore[union-attr]
        out = None
        if new is not None and weight.shape[1] > n_old:
            out = layer.apply_weight(new, weight[:, n_old:], bias)
        if old is not None and n_old:
            through_old = layer.apply_weight(old, weight[:, :n_old], bias if out is None else None)
            out = through_old if out is None else out + through_old
        if out is None or rows is None:
            return out
        # A gradient along a path is that of the candidate's own gate alone.
        return self._around(layer, rows if stream == "ghost" else rows.detach(), out)

    def _around(self, layer: GrowableLayer, rows: Tensor, moves: Tensor) -> Tensor:
        """Own rows added to what moves their two halves, space by space."""
        parts, base = [], 0
        for segment in layer.writes:
            candidates = self.candidates.get(segment.space)
            if candidates is None:
                continue
            at = own_channels(
                self.net, layer.writes, segment.space, torch.arange(candidates.splits)
            ).to(rows.device)
            halves, end = 2 * len(at), base + candidates.ghosts * segment.repeat
            parts.append(moves[:, base : base + halves] + rows[:, torch.cat([at, at])])
            parts.append(moves[:, base + halves : end])
            base = end
        return torch.cat(parts, 1)

    def _stacked(
        self, node: Node, layer: GrowableLayer, stream: str
    ) -> tuple[Tensor, Tensor | None]:
        """Rows of the ghosts: splits up, splits down, copies, new units, space by space.

        Splits have their move alone, except in a layer that works unit by unit.
        """
        block = layer.block(self.task)
        assert block is not None
        weights, biases = [], []
        for segment in layer.writes:
            candidates = self.candidates.get(segment.space)
            if candidates is None:
                continue
            r = segment.repeat
            at = own_channels(
                self.net, layer.writes, segment.space, torch.arange(candidates.splits)
            )
            direction = candidates.directions[node.name]
            split_d = direction[: candidates.splits * r]
            copy_d = direction[candidates.splits * r :]
            copied = candidates.originals[node.name]
            step = _column(self._gate(candidates.split_gates, stream), r, split_d) * split_d
            shift = _column(self._gate(candidates.copy_gates, stream), r, copy_d) * copy_d
            news = candidates.incoming[node.name]
            own = block.from_own.detach()[at] if layer.per_unit else 0.0
            weights += [own + step, own - step, copied.weight + shift, news]
            if block.bias is not None:
                bias = block.bias.detach()[at]
                if not layer.per_unit:
                    bias = torch.zeros_like(bias)
                fresh = bias.new_zeros(len(news))
                biases += [bias, bias, copied.bias if copied.bias is not None else fresh[:0], fresh]
        return torch.cat(weights), torch.cat(biases) if biases else None

    def _gate(self, gate: Tensor, stream: str) -> Tensor:
        """A split's or copy's gate in a stream: as it is, or moved along its path."""
        if self.fraction is None:
            return gate
        if stream == "ghost":
            return gate.detach()
        sign = torch.where(gate.detach() < 0, -1.0, 1.0).to(gate)
        return gate + (self.fraction * self.reach * sign - gate.detach())

    # --- norms ------------------------------------------------------------------------------------

    def norm(self, node: Node, value: Streams) -> Streams:
        """Frozen statistics for all but new units, which use those of the batch."""
        out = super().norm(node, {k: v for k, v in value.items() if k in ("old", "new")})
        norm = self.net.layers[node.name]
        assert isinstance(norm, GrowableNorm)
        for stream in self.ghost_streams():
            if stream in value:
                out[stream] = self._ghost_norm(node, norm, value[stream])
        return out

    def _ghost_norm(self, node: Node, norm: GrowableNorm, x: Tensor) -> Tensor:
        own = norm.block(self.task)
        assert own is not None
        parts: list[Statistics] = []
        fresh, base = [], 0
        for segment in norm.writes:
            candidates = self.candidates.get(segment.space)
            if candidates is None:
                continue
            at = own_channels(self.net, norm.writes, segment.space, torch.arange(candidates.splits))
            splits = Statistics(
                own.running_mean[at],
                own.running_var[at],
                None if own.weight is None else own.weight.detach()[at],
                None if own.bias is None else own.bias.detach()[at],
            )
            copied = candidates.original_norms[node.name]
            first = base + 2 * len(at)
            n_copies, n_news = len(copied.mean), candidates.news * segment.repeat
            mean, var = _batch_statistics(x[:, first : first + n_copies + n_news])
            found = Statistics(mean.to(own.running_mean), var.to(own.running_var), None, None)
            candidates.statistics[node.name] = found
            news = Statistics(
                found.mean[n_copies:],
                found.var[n_copies:],
                None if own.weight is None else own.weight.new_ones(n_news),
                None if own.bias is None else own.bias.new_zeros(n_news),
            )
            parts += [splits, splits, copied, news]
            base = first + n_copies + n_news
            fresh.append(torch.arange(base - n_news, base))
        joined = Statistics(
            torch.cat([p.mean for p in parts]),
            torch.cat([p.var for p in parts]),
            torch.cat([p.weight for p in parts if p.weight is not None]) if norm.affine else None,
            torch.cat([p.bias for p in parts if p.bias is not None]) if norm.affine else None,
        )
        out = norm.evaluate(x, joined)
        new = torch.cat(fresh).to(x.device)
        if not len(new):
            return out
        normal = F.batch_norm(x[:, new], None, None, None, None, True, 0.0, norm.eps)
        return out.index_copy(1, new, normal.to(out.dtype))

    # --- candidates as seen by what reads them ----------------------------------------------------

    def own_rows(self, node: Node, layer: GrowableLayer, value: Streams) -> Tensor | None:
        """The task's own rows of a layer, reading the network with its candidates."""
        old, new = self.read(node, value.get("old")), value.get("new")
        if layer.per_unit or "ghost" not in value:
            return layer.new_rows(self.task, old, new)
        block = layer.block(self.task)
        if block is None or not block.rows:
            return None
        parts = self._cut(layer, value["ghost"])
        along = self._cut(layer, value["path"]) if "path" in value else None
        out_new = []
        for i, (space, up, down, copies, news) in enumerate(parts):
            candidates = self.candidates[space]
            moved = {"split": (up + down) / 2, "copy": copies}
            if along is not None:
                _, up, down, copies, _ = along[i]
                there = {"split": (up + down) / 2, "copy": copies}
                moved = {k: moved[k] + there[k] - there[k].detach() for k in moved}
            if new is not None and candidates.splits:
                at = own_channels(self.net, layer.reads, space, torch.arange(candidates.splits))
                new = new.index_copy(1, at.to(new.device), moved["split"].to(new.dtype))
            if old is not None and len(candidates.copies):
                at = _read_at(self.net, layer, space, candidates.copies).to(old.device)
                old = old.index_copy(1, at, moved["copy"].to(old.dtype))
            if candidates.news:
                repeat = news.shape[1] // candidates.news
                gate = candidates.new_gates.repeat_interleave(repeat)
                shape = [1, -1, *[1] * (news.dim() - 2)]
                out_new.append(
                    layer.apply_weight(
                        news * gate.view(shape), candidates.outgoing[node.name], None
                    )
                )
        rows = layer.new_rows(self.task, old, new)
        for extra in out_new:
            rows = extra if rows is None else rows + extra
        return rows

    def _cut(
        self, layer: GrowableLayer, ghosts: Tensor
    ) -> list[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
        """(space, splits up, splits down, copies, new units) of a ghost stream, per space.

        A space that a layer reads in two places is joined in the order of the units' columns.
        """
        found: dict[str, list[list[Tensor]]] = {}
        base = 0
        for segment in layer.reads:
            candidates = self.candidates.get(segment.space)
            if candidates is None:
                continue
            counts = (
                candidates.splits,
                candidates.splits,
                len(candidates.copies),
                candidates.news,
            )
            pieces = []
            for count in counts:
                pieces.append(ghosts[:, base : base + count * segment.repeat])
                base += count * segment.repeat
            found.setdefault(segment.space, []).append(pieces)
        return [
            (space, *(torch.cat(kind, 1) for kind in zip(*places, strict=True)))  # type: ignore[misc]
            for space, places in found.items()
        ]


def _column(gate: Tensor, repeat: int, like: Tensor) -> Tensor:
    return gate.repeat_interleave(repeat).view(-1, *[1] * (like.dim() - 1))


def _read_at(net: FireflyNet, layer: GrowableLayer, space: str, units: Tensor) -> Tensor:
    none = torch.zeros(0, dtype=torch.int64)
    only = {name: units if name == space else none for name in net.spaces}
    return positions(layer.reads, net.tasks[-1].reads, only)[0]


def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of every channel."""
    dims = [0, *range(2, x.dim())]
    values = x.detach().float()
    if not values.shape[1]:
        return values.new_zeros(0), values.new_zeros(0)
    var, mean = torch.var_mean(values, dims)
    return mean, var
