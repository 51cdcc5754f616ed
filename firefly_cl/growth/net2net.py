"""Net2Net: copies of units drawn by chance, which share the outgoing weights of their unit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firefly_cl.errors import ConfigurationError, NothingToGrow
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget, Candidate, room_to_double, step_cost, take
from firefly_cl.growth.candidates import by_unit, unit_lengths
from firefly_cl.growth.criterion import Autocast, Growth, Loss, open_spaces
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import replicate
from firefly_cl.network.rebuild import Edit
from firefly_cl.network.rows import drawn_rows, own_block, own_channels


@CRITERIA.register("net2net")
@dataclass(frozen=True)
class Net2Net:
    """Net2WiderNet (Chen, Goodfellow, Shlens 2016, arXiv 1511.05641), wider only.

    The units to copy are drawn with replacement, among the newest task's own; m copies of a unit
    have 1/m of its outgoing weights each. noise: norm of what is added to a copy's incoming rows,
    as a share of theirs, so that copies part in training; with 0 no function changes at all.
    """

    noise: float = 0.01

    def __post_init__(self) -> None:
        """Raise ConfigurationError for a noise that cannot work."""
        if not self.noise >= 0:
            raise ConfigurationError("noise of net2net must be 0 or more")

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
        """One growth step; raises EditError and leaves `net` as it was then."""
        costs = open_spaces(net, budget)
        kept = self.draw(net, costs, budget, generator)
        chosen: dict[str, list[int]] = {}
        for candidate in kept:
            chosen.setdefault(candidate.space, []).append(candidate.unit)
        edits = [self._copy(net, space, units, generator) for space, units in chosen.items()]
        return Growth(edits, kept)

    def draw(
        self, net: FireflyNet, costs: dict[str, float], budget: Budget, generator: torch.Generator
    ) -> list[Candidate]:
        """Units to copy, as far as the budget goes; raises NothingToGrow where there is none."""
        room = room_to_double(net, list(costs))
        widths = {space: net.spaces[space].width(net.current) for space in costs}
        pool = [
            Candidate("copy", space, unit, 0.0, costs[space])
            for space, width in widths.items()
            if width
            for unit in torch.randint(width, (room[space],), generator=generator).tolist()
        ]
        if not pool:
            raise NothingToGrow(
                f"net2net copies a task's own units, and task {net.current} has none in "
                f"{', '.join(costs)}: give it seed units or choose another criterion"
            )
        order = torch.randperm(len(pool), generator=generator).tolist()
        return take(
            (pool[i] for i in order), budget, room, lambda more: step_cost(net, more, budget)
        )

    def _copy(
        self, net: FireflyNet, space: str, units: list[int], generator: torch.Generator
    ) -> Edit:
        numbers = torch.tensor(units)
        return replicate(net, space, numbers, self._offsets(net, space, numbers, generator))

    @torch.no_grad()
    def _offsets(
        self, net: FireflyNet, space: str, units: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Noise for the rows of copies, `noise` times as long as these over all producers."""
        if not self.noise:
            return {}
        offsets, lengths = {}, torch.zeros(len(units))
        for name, rows in drawn_rows(net, space, len(units), generator).items():
            block = own_block(net, name)
            at = own_channels(net, net.node(name).layout, space, units)
            copied = torch.cat([block.from_old, block.from_own], 1)[at]
            lengths = lengths.to(copied) + copied.reshape(len(units), -1).square().sum(1)
            offsets[name] = rows.weight
        drawn = unit_lengths(list(offsets.values()), 0, len(units)).clamp(min=1e-12)
        scale = self.noise * lengths.sqrt() / drawn
        return {name: offset * by_unit(scale, offset, 0) for name, offset in offsets.items()}
