"""The network with its candidates, run in streams of their own; the network is only read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from firefly_cl.growth.candidates import (
    Candidates,
    LayerCandidates,
    SpaceCandidates,
    by_unit,
    join_places,
)
from firefly_cl.network import FireflyNet
from firefly_cl.network.execution import Execution, Streams
from firefly_cl.network.graph import Node, apply_map
from firefly_cl.network.layers import GrowableLayer, GrowableNorm, Statistics
from firefly_cl.network.rows import own_channels, read_channels
from firefly_cl.network.space import Layout, channel_count, positions


class CandidateExecution(Execution):
    """The network with its candidates, for the newest task.

    fraction: None to let gates and directions act as they are (step 1). Otherwise the
    candidates act with their gates as they are, while the gradient with respect to a split's or
    a copy's gate is taken at `fraction` of `reach`, on the path from no change to a whole one
    (step 2: the mean over fractions is the score). Gradients on a new or hidden unit's gate do
    not depend on where they are taken.
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
        self.spaces = {k: c for k, c in candidates.items() if isinstance(c, SpaceCandidates)}
        self.layers = {k: c for k, c in candidates.items() if isinstance(c, LayerCandidates)}
        self.fraction = fraction
        self.reach = reach

    def step(self, node: Node, inputs: Sequence[Streams]) -> Streams:
        """One node on every stream, and behind it the layer that could be inserted there."""
        out = super().step(node, inputs)
        layer = self.layers.get(node.name)
        return out if layer is None else self.deepened(node, layer, out)

    def deepened(self, node: Node, layer: LayerCandidates, value: Streams) -> Streams:
        """Own channels, and the halves of splits with them, with h(z) added.

        The hidden units see the network without other candidates of the spaces at this place.
        """
        old, new = value.get("old"), value.get("new")
        reads = self.net.tasks[self.task].reads
        n_old = channel_count(node.layout, reads)
        weights = layer.incoming[:, :n_old], layer.incoming[:, n_old:]
        hidden = None
        if new is not None:
            hidden = layer.enter.apply_weight(new, weights[1], None)
        if old is not None and n_old:
            at, _ = positions(node.layout, self.net.tasks[self.task].active, reads)
            if len(at) < old.shape[1]:
                old = old.index_select(1, at.to(old.device))
            through_old = layer.enter.apply_weight(old, weights[0], None)
            hidden = through_old if hidden is None else hidden + through_old
        if hidden is None:
            return value
        mean, var = batch_statistics(hidden)
        like = layer.incoming
        layer.statistics = Statistics(mean.to(like), var.to(like), None, None)
        norm, activation = layer.made.norm, layer.made.activation
        if norm is not None:
            eps = norm.attributes["eps"]
            hidden = F.batch_norm(hidden, None, None, None, None, True, 0.0, eps)
        hidden = apply_map(activation, hidden, self.training)
        hidden = hidden * by_unit(layer.hidden_gates, hidden, 1)
        h = layer.leave.apply_weight(hidden, layer.outgoing, None)
        added = {"new": h}
        for stream in self.ghost_streams():
            if stream in value:
                added[stream] = self.for_halves(node.layout, h if stream == "ghost" else h.detach())
        return value | {
            stream: value[stream] + more if stream in value else more
            for stream, more in added.items()
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
        moving = any(space.splits or len(space.copies) for space in self.spaces.values())
        return ["ghost", "path"] if self.fraction is not None and moving else ["ghost"]

    # --- candidates as producers ----------------------------------------------------------------

    def ghost_rows(
        self, node: Node, layer: GrowableLayer, value: Streams, stream: str, rows: Tensor | None
    ) -> Tensor | None:
        """Output of the candidates' rows of a layer, in the order of its layout.

        rows: of the task's own units, which the halves of their splits move away from.
        """
        if not any(s.space in self.spaces for s in layer.writes):
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
        if rows is None:
            return out
        # A gradient along a path is that of the candidate's own gate alone.
        halves = self.for_halves(layer.writes, rows if stream == "ghost" else rows.detach())
        return halves if out is None else out + halves

    def for_halves(self, layout: Layout, own: Tensor) -> Tensor:
        """Own channels as the two halves of their splits have them; zero for other ghosts."""
        parts, base = [], 0
        for segment in layout:
            end = base + self.net.spaces[segment.space].width(self.task) * segment.repeat
            candidates = self.spaces.get(segment.space)
            if candidates is not None:
                rest = (candidates.ghosts - 2 * candidates.splits) * segment.repeat
                zeros = own.new_zeros(len(own), rest, *own.shape[2:])
                halves = [own[:, base:end]] * 2 if candidates.splits else []
                parts += [*halves, zeros]
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
            candidates = self.spaces.get(segment.space)
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
            step = by_unit(self._gate(candidates.split_gates, stream), split_d, 0) * split_d
            shift = by_unit(self._gate(candidates.copy_gates, stream), copy_d, 0) * copy_d
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
            candidates = self.spaces.get(segment.space)
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
            mean, var = batch_statistics(x[:, first : first + n_copies + n_news])
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
            candidates = self.spaces[space]
            moved = {"split": (up + down) / 2, "copy": copies}
            if along is not None:
                _, up, down, copies, _ = along[i]
                there = {"split": (up + down) / 2, "copy": copies}
                moved = {k: moved[k] + there[k] - there[k].detach() for k in moved}
            if new is not None and candidates.splits:
                at = own_channels(self.net, layer.reads, space, torch.arange(candidates.splits))
                new = new.index_copy(1, at.to(new.device), moved["split"].to(new.dtype))
            if old is not None and len(candidates.copies):
                at = read_channels(self.net, layer.reads, space, candidates.copies).to(old.device)
                old = old.index_copy(1, at, moved["copy"].to(old.dtype))
            if candidates.news:
                small = news * by_unit(candidates.new_gates, news, 1)
                out_new.append(layer.apply_weight(small, candidates.outgoing[node.name], None))
        rows = layer.new_rows(self.task, old, new)
        for extra in out_new:
            rows = extra if rows is None else rows + extra
        return rows

    def _cut(
        self, layer: GrowableLayer, ghosts: Tensor
    ) -> list[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
        """(space, splits up, splits down, copies, new units) of a ghost stream, per space.

        Of a space that a layer reads in two places, splits and copies stand in the order of the
        units' columns, and new units one by one, as their outgoing weights do.
        """
        found: dict[str, list[list[Tensor]]] = {}
        base = 0
        for segment in layer.reads:
            candidates = self.spaces.get(segment.space)
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
        cut = []
        for space, places in found.items():
            up, down, copies, news = (list(kind) for kind in zip(*places, strict=True))
            joined = join_places(news, self.spaces[space].news)
            cut.append((space, torch.cat(up, 1), torch.cat(down, 1), torch.cat(copies, 1), joined))
        return cut


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of every channel."""
    dims = [0, *range(2, x.dim())]
    values = x.detach().float()
    if not values.shape[1]:
        return values.new_zeros(0), values.new_zeros(0)
    var, mean = torch.var_mean(values, dims)
    return mean, var
