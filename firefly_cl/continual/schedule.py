"""When a task grows, selects and prunes, and how far it has come in that."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from firefly_cl.continual.plan import Plan


@dataclass
class Schedule:
    """What is due after which epochs of a task's training, and what has been done.

    due, selections, prunings: epochs after which the task may grow, selects and prunes; none is
    left in `due` once growth has stopped. rounds: the same with beginning and end, where trainings
    of their own begin if the plan restarts. at_first: what the task's own rows cost before any
    growth, in the currency of budgets; steps: growth steps by now. last_loss: on validation images,
    before the last of them.
    """

    epoch: int = 0
    due: set[int] = field(default_factory=set)
    selections: set[int] = field(default_factory=set)
    prunings: set[int] = field(default_factory=set)
    rounds: list[int] = field(default_factory=lambda: [0])
    at_first: float = 0
    steps: int = 0
    last_loss: float | None = None

    @staticmethod
    def of(plan: Plan, epochs: int, at_first: float) -> Schedule:
        """That of a task that begins; warns of shares of its epochs that are within none."""
        due, selections, prunings = (
            _epochs_at(name, getattr(plan, name), epochs)
            for name in ("grow_at", "select_at", "prune_at")
        )
        rounds = [0, *sorted(due | selections | prunings), epochs]
        return Schedule(0, due, selections, prunings, rounds, at_first)

    def round_length(self) -> int | None:
        """Epochs of the round that begins now; None within one."""
        if self.epoch not in self.rounds[:-1]:
            return None
        return self.rounds[self.rounds.index(self.epoch) + 1] - self.epoch

    def wanted(self, growth: float) -> float:
        """What the task's own rows may cost after one more step, each `growth` larger."""
        return self.at_first * (1 + growth) ** (self.steps + 1)

    def lost(self, cost: float, growth: float) -> None:
        """Rows went: a step's share counts from what is left, so that growth makes up for none."""
        self.at_first -= cost / (1 + growth) ** self.steps

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in vars(self).items()
        }

    @staticmethod
    def from_json(told: Mapping[str, Any]) -> Schedule:
        """The schedule that `to_json` wrote; other keys are left alone."""
        schedule = Schedule(**{name: told[name] for name in vars(Schedule())})
        for name in ("due", "selections", "prunings"):
            setattr(schedule, name, set(told[name]))
        return schedule


def _epochs_at(name: str, shares: Sequence[float], epochs: int) -> set[int]:
    found = {epoch for share in shares if 0 < (epoch := round(share * epochs)) < epochs}
    if shares and not found:
        warnings.warn(
            f"{name}={shares} is within no epoch of {epochs}: it never happens", stacklevel=2
        )
    return found
