"""Net2Net: copies of units and identity layers at places drawn by chance; no function changes."""

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
from firefly_cl.network.deeper import deeper_places
from firefly_cl.network.edits import insert, replicate
from firefly_cl.network.rebuild import Edit
from firefly_cl.network.rows import drawn_rows, own_block, own_channels


@CRITERIA.register("net2net")
@dataclass(frozen=True)
class Net2Net:
    """Net2WiderNet and Net2DeeperNet (Chen, Goodfellow, Shlens 2016, arXiv 1511.05641).

    The units to copy are drawn with replacement, among the newest task's own; m copies of a unit
    have 1/m of its outgoing weights each. noise: norm of what is added to a copy's incoming rows,
    as a share of theirs, so that copies part in training; with 0 no function changes at all.
    depths: hidden units that an identity layer may have, at each place where one could be inserted
    (0: none is); which there are is drawn together with the copies. The layer is z + h(z), h with
    outgoing weights of zero (`insert`), where the paper has the identity as a kernel: it is one
    behind any activation, and writes to the task's own channels alone.
    """

    noise: float = 0.01
    depths: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        if not (self.noise >= 0 and self.depths >= 0):
            raise ConfigurationError("noise and depths of net2net must be 0 or more")

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
        places = deeper_places(net) if self.depths else []
        kept = self.draw(net, places, budget, generator)
        chosen: dict[str, list[int]] = {}
        for candidate in kept:
            chosen.setdefault(candidate.space, []).append(candidate.unit)
        edits = [
            self._copy(net, space, chosen[space], generator)
            for space in chosen
            if space not in places
        ]
        edits += [
            insert(net, place, len(chosen[place]), generator=generator)
            for place in places
            if place in chosen
        ]
        return Growth(edits, kept)

    def draw(
        self, net: FireflyNet, places: Sequence[str], budget: Budget, generator: torch.Generator
    ) -> list[Candidate]:
        """Units to copy and hidden units of layers behind `places`, as far as the budget goes.

        Raises EditError, NothingToGrow where the task has no units of its own.
        """
        costs = open_spaces(net, budget, places)
        spaces = [name for name in costs if name not in places]
        room = room_to_double(net, spaces) | dict.fromkeys(places, self.depths)
        widths = {space: net.spaces[space].width(net.current) for space in spaces}
        pool = [
            Candidate("copy", space, unit, 0.0, costs[space])
            for space, width in widths.items()
            if width
            for unit in torch.randint(width, (room[space],), generator=generator).tolist()
        ]
        pool += [
            Candidate("deeper", place, unit, 0.0, costs[place])
            for place in places
            for unit in range(self.depths)
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
