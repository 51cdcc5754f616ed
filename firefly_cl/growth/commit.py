"""Making the winning candidates part of the network, by edits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from firefly_cl.growth.budget import Candidate
from firefly_cl.growth.candidates import (
    Candidates,
    LayerCandidates,
    SpaceCandidates,
    part_places,
)
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import insert, split, unlock, widen
from firefly_cl.network.layers import GrowableLayer, Statistics
from firefly_cl.network.rebuild import Edit
from firefly_cl.network.rows import growable_layer
from firefly_cl.network.space import channel_count


@dataclass
class _Winners:
    """What won in one space: numbers of units, and values as wide as the network is by now."""

    units: Tensor
    rows: dict[str, Tensor]
    columns: dict[str, Tensor]

    def follow(self, net: FireflyNet, edit: Edit) -> None:
        """Bring the values up to date with an edit of another space."""
        for name, value in self.rows.items():
            layer = net.layers[name]
            assert isinstance(layer, GrowableLayer)
            self.rows[name] = edit.carry_incoming(layer, value)
        for name, value in self.columns.items():
            layer = net.layers[name]
            assert isinstance(layer, GrowableLayer)
            self.columns[name] = edit.carry_rows(layer, value)


@torch.no_grad()
def commit(
    net: FireflyNet, candidates: Candidates, kept: Sequence[Candidate], reach: float
) -> list[Edit]:
    """Split, unlock and add the kept candidates with gates of size `reach`; returns the edits.

    A split moves its two halves by +-reach d, an unlocked copy by its sign times reach d, and a
    new or hidden unit gets its outgoing weights times its sign times reach.
    """
    edits: list[Edit] = []
    for space, chosen in candidates.items():
        if isinstance(chosen, LayerCandidates):
            continue
        for kind in ("split", "unlock", "new"):
            of_kind = [c for c in kept if c.space == space and c.kind == kind]
            if of_kind:
                edits.append(_commit_kind(net, chosen, of_kind, reach, edits))
    widened = list(edits)
    for place, layer in candidates.items():
        hidden = [c for c in kept if c.space == place and c.kind == "deeper"]
        if hidden and isinstance(layer, LayerCandidates):
            edits.append(_commit_layer(net, place, layer, hidden, reach, widened))
    return edits


def _commit_layer(
    net: FireflyNet,
    place: str,
    candidates: LayerCandidates,
    kept: Sequence[Candidate],
    reach: float,
    edits: Sequence[Edit],
) -> Edit:
    units = torch.tensor([c.unit for c in kept])
    signs = torch.tensor([c.sign for c in kept])
    total = len(candidates.hidden_gates)
    incoming = _picked(candidates.incoming, 0, units, total)
    outgoing = _scaled(_picked(candidates.outgoing, 1, units, total), 1, signs * reach)
    old = channel_count(candidates.enter.reads, net.tasks[-1].reads)
    own = incoming[:, old:]
    for edit in edits:
        own = edit.carry_columns(candidates.enter, own)
        outgoing = edit.carry_rows(candidates.leave, outgoing)
    found = candidates.statistics
    if found is not None:
        mean, var = (_picked(value, 0, units, total) for value in (found.mean, found.var))
        found = Statistics(mean, var, None, None)
    incoming = torch.cat([incoming[:, :old], own], 1)
    return insert(net, place, len(units), incoming=incoming, outgoing=outgoing, statistics=found)


def _commit_kind(
    net: FireflyNet,
    candidates: SpaceCandidates,
    kept: Sequence[Candidate],
    reach: float,
    edits: Iterable[Edit],
) -> Edit:
    kind, space = kept[0].kind, kept[0].space
    units = torch.tensor([c.unit for c in kept])
    signs = torch.tensor([c.sign for c in kept])
    if kind == "new":
        winners = _Winners(
            units,
            _rows(candidates.incoming, units, candidates.news),
            {
                name: _in_places(
                    net,
                    name,
                    space,
                    _scaled(_picked(value, 1, units, candidates.news), 1, signs * reach),
                )
                for name, value in candidates.outgoing.items()
            },
        )
    else:
        moving = candidates.splits + len(candidates.copies)
        at = units if kind == "split" else _places(candidates, units)
        rows = _rows(candidates.directions, at, moving)
        winners = _Winners(
            units,
            {name: _scaled(value, 0, signs * reach) for name, value in rows.items()},
            {},
        )
    for edit in edits:
        winners.follow(net, edit)
    if kind == "split":
        return split(net, space, units, winners.rows)
    if kind == "unlock":
        norms = _statistics(candidates, torch.searchsorted(candidates.copies, units))
        return unlock(net, space, units, winners.rows, norms)
    norms = _statistics(candidates, len(candidates.copies) + units)
    unused = torch.Generator()  # every row is given: leave the global generator alone
    return widen(net, space, len(units), winners.rows, winners.columns, norms, unused)


def _places(candidates: SpaceCandidates, units: Tensor) -> Tensor:
    return candidates.splits + torch.searchsorted(candidates.copies, units)


def _rows(values: Mapping[str, Tensor], units: Tensor, total: int) -> dict[str, Tensor]:
    return {name: _picked(value, 0, units, total) for name, value in values.items()}


def _picked(value: Tensor, dim: int, units: Tensor, total: int) -> Tensor:
    repeat = value.shape[dim] // total
    at = (units[:, None] * repeat + torch.arange(repeat)).flatten()
    return value.detach().index_select(dim, at.to(value.device))


def _in_places(net: FireflyNet, name: str, space: str, columns: Tensor) -> Tensor:
    """Columns of new units as the layer reads them."""
    repeats = [s.repeat for s in growable_layer(net, name).reads if s.space == space]
    return part_places(columns, repeats, columns.shape[1] // sum(repeats))


def _scaled(value: Tensor, dim: int, by: Tensor) -> Tensor:
    shape = [1] * value.dim()
    shape[dim] = -1
    return value * by.repeat_interleave(value.shape[dim] // len(by)).to(value).view(shape)


def _statistics(candidates: SpaceCandidates, at: Tensor) -> dict[str, Statistics]:
    """What some copies and new units had in the last batch, by norm."""
    total = len(candidates.copies) + candidates.news
    return {
        name: Statistics(
            _picked(found.mean, 0, at, total), _picked(found.var, 0, at, total), None, None
        )
        for name, found in candidates.statistics.items()
    }
