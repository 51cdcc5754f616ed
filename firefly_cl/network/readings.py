"""Which units the rows of each task read, space by space: the network as a drawing shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from firefly_cl.network.laterals import tapped
from firefly_cl.network.layers import GrowableLayer
from firefly_cl.network.space import GIVEN, spaces_of

if TYPE_CHECKING:
    from firefly_cl.network.net import FireflyNet

HEAD = "head"
"""What a task's head is called where spaces have names."""


@dataclass(frozen=True)
class Reading:
    """Rows of task `reader` in the space `target` read `units` units of `owner` in `source`.

    The owner of input channels is GIVEN.
    """

    source: str
    owner: int
    target: str
    reader: int
    units: int


def readings(net: FireflyNet) -> list[Reading]:
    """What each task's own rows and head read, of each owner; layers between two spaces as one.

    Layers that work unit by unit are left out: their rows read nothing but their own unit.
    """
    found: dict[Reading, None] = {}
    for node in net.nodes:
        layer = net.layers[node.name] if node.name in net.layers else None
        if not isinstance(layer, GrowableLayer) or layer.per_unit:
            continue
        targets = [HEAD] if layer.is_head else [segment.space for segment in node.layout]
        sources = [segment.space for segment in layer.reads]
        for reader in range(len(net.tasks)):
            columns = net.read_units(reader)
            for target in dict.fromkeys(targets):
                if target != HEAD and not net.spaces[target].width(reader):
                    continue
                for source in dict.fromkeys(sources):
                    for owner, units in _by_owner(net, source, columns[source]).items():
                        found[Reading(source, owner, target, reader, units)] = None
    for reader in range(len(net.tasks)):
        lateral = net.lateral(reader)
        for owner in lateral.sources if lateral is not None else ():
            for space in spaces_of([node.layout for node in tapped(net)]):
                if units := net.spaces[space].width(owner):
                    found[Reading(space, owner, HEAD, reader, units)] = None
    return list(found)


def _by_owner(net: FireflyNet, space: str, units: torch.Tensor) -> dict[int, int]:
    """How many of some units belong to each owner."""
    widths = net.spaces[space].widths
    owners = sorted(owner for owner in widths if owner >= GIVEN)
    numbers = torch.tensor(owners)
    of_each = torch.repeat_interleave(numbers, torch.tensor([widths[owner] for owner in owners]))
    found, counts = torch.unique(of_each[units], return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
