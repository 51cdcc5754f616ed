"""Spaces: the units that several layers must agree on, each with the task that owns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

GIVEN = -1
"""Owner of the network's input channels: visible to every task, trained by none."""


@dataclass
class Space:
    """Units shared by every layer that writes or reads them.

    `widths[t]` units belong to task t. Units are numbered through by owner, then by age, and the
    number of a unit never changes once its owner is frozen.
    """

    name: str
    widths: dict[int, int] = field(default_factory=dict)
    fixed: bool = False

    def width(self, owner: int) -> int:
        """How many units `owner` has here."""
        return self.widths.get(owner, 0)

    def before(self, task: int) -> int:
        """How many units belong to tasks before `task`, the input channels among them."""
        return sum(width for owner, width in self.widths.items() if owner < task)

    def owned(self, task: int) -> Tensor:
        """Numbers of the units of `task`, (width(task),) int64."""
        start = self.before(task)
        return torch.arange(start, start + self.width(task))

    def owners(self, before: int) -> list[int]:
        """Owners below `before` that have units here, oldest first."""
        return sorted(o for o, width in self.widths.items() if o < before and width)


@dataclass(frozen=True)
class Segment:
    """A run of channels that hold one space: `repeat` consecutive channels for each unit."""

    space: str
    repeat: int = 1


Layout = tuple[Segment, ...]
"""How the channels of a tensor are made of units: one segment after another."""

Selection = Mapping[str, Tensor]
"""For each space by name, sorted numbers of some of its units, int64."""


def channel_count(layout: Layout, selection: Selection) -> int:
    """Channels of a tensor that holds the selected units."""
    return sum(len(selection[s.space]) * s.repeat for s in layout)


def expand(units: Tensor, repeat: int) -> Tensor:
    """Channel numbers of units that hold `repeat` channels each."""
    if repeat == 1:
        return units
    return (units[:, None] * repeat + torch.arange(repeat)).flatten()


def positions(layout: Layout, inside: Selection, of: Selection) -> tuple[Tensor, Tensor]:
    """Where the channels of the units `of` stand in a tensor that holds the units `inside`.

    Returns (n,) int64 positions and (n,) bool, whether each is there at all; n is the
    number of channels of `of`.
    """
    where, found, base = [], [], 0
    for segment in layout:
        present, wanted = inside[segment.space], of[segment.space]
        at = torch.searchsorted(present, wanted)
        clipped = at.clamp(max=max(len(present) - 1, 0))
        there = present[clipped] == wanted if len(present) else torch.zeros_like(wanted).bool()
        where.append(base + expand(clipped, segment.repeat))
        found.append(there if segment.repeat == 1 else there.repeat_interleave(segment.repeat))
        base += len(present) * segment.repeat
    if not where:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    return torch.cat(where), torch.cat(found)


def channel_sources(
    layout: Layout, space: str, sources: Tensor, widths: Mapping[str, int]
) -> tuple[Tensor, Tensor]:
    """Follow channels through a change of one space's own units.

    sources: (k,) int64, for each unit after the change its number among the owner's units
    before it, or -1 for a fresh one. widths: the owner's width of each space before the change.
    Returns, over the channels after the change, their number before (-1: fresh), and the
    number of their unit in the changed space (-1: another space).
    """
    before, unit, base = [], [], 0
    for segment in layout:
        width = widths[segment.space]
        if segment.space == space:
            moved = expand(sources, segment.repeat) + base
            fresh = (sources < 0).repeat_interleave(segment.repeat)
            before.append(torch.where(fresh, -1, moved))
            unit.append(torch.arange(len(sources)).repeat_interleave(segment.repeat))
        else:
            channels = torch.arange(width * segment.repeat)
            before.append(channels + base)
            unit.append(torch.full_like(channels, -1))
        base += width * segment.repeat
    if not before:
        empty = torch.zeros(0, dtype=torch.int64)
        return empty, empty
    return torch.cat(before), torch.cat(unit)


def spaces_of(layouts: Sequence[Layout]) -> list[str]:
    """Names of the spaces in some layouts, each once, in order of appearance."""
    return list(dict.fromkeys(s.space for layout in layouts for s in layout))
