"""Selection under a budget: what a unit costs, and which candidates are worth it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from firefly_cl.errors import ConfigurationError
from firefly_cl.network import FireflyNet
from firefly_cl.network.layers import GrowableLayer, GrowableNorm

COSTS = ("units", "parameters", "flops")


@dataclass(frozen=True)
class Budget:
    """How much one growth step may add, counted in units, parameters (floats stored) or FLOPs."""

    amount: int
    cost: str = "units"

    def __post_init__(self) -> None:
        """Raise ConfigurationError for a cost that is not known or an amount below 1."""
        if self.cost not in COSTS:
            raise ConfigurationError(f"cost {self.cost!r} is unknown: use {', '.join(COSTS)}")
        if self.amount < 1:
            raise ConfigurationError(
                f"a growth budget of {self.amount} buys nothing: give 1 or more"
            )


@dataclass(frozen=True)
class Candidate:
    """One unit that could be added.

    kind: split, new or unlock. unit: its number among the task's own units (split), the new
    candidates (new) or all older units (unlock) of the space. gain: expected decrease of the
    loss. cost: in the budget's currency. sign: of its gate.
    """

    kind: str
    space: str
    unit: int
    gain: float
    cost: int
    sign: float = 1.0


def unit_cost(net: FireflyNet, space: str, cost: str) -> int:
    """What one more own unit in `space` adds for the newest task, in a currency of COSTS.

    FLOPs are those of one image.
    """
    if cost == "units":
        return 1
    total = 0
    for node in net.nodes:
        layer = net.layers[node.name] if node.name in net.layers else None
        writes = sum(s.repeat for s in node.layout if s.space == space)
        if isinstance(layer, GrowableNorm) and cost == "parameters":
            total += writes * (4 if layer.affine else 2)
        if not isinstance(layer, GrowableLayer):
            continue
        block = layer.block(net.current)
        if block is None:
            continue
        positions = 2 * node.size if cost == "flops" else 1
        for side in layer.kernel:
            positions *= side
        columns = block.from_old.shape[1] + block.from_own.shape[1]
        total += writes * columns * positions
        if cost == "parameters" and block.bias is not None:
            total += writes
        if not layer.per_unit:
            reads = sum(s.repeat for s in layer.reads if s.space == space)
            total += block.rows * reads * positions
    return total


def select(
    candidates: Sequence[Candidate], budget: Budget, most: Mapping[str, int]
) -> list[Candidate]:
    """The candidates to keep: greatest gain for their cost first, while the budget lasts.

    most: how many units each space may gain; a layer at most doubles in one step (method.md
    section 3). Candidates without gain are never kept.
    """
    room = dict(most)
    left = budget.amount
    kept = []
    for candidate in sorted(candidates, key=_worth, reverse=True):
        if candidate.gain <= 0 or room.get(candidate.space, 0) < 1 or candidate.cost > left:
            continue
        kept.append(candidate)
        room[candidate.space] -= 1
        left -= candidate.cost
    return kept


def _worth(candidate: Candidate) -> float:
    return candidate.gain / candidate.cost


def room_to_double(net: FireflyNet, spaces: Sequence[str]) -> dict[str, int]:
    """How many units each space may gain in one step: as many as the task has there, or one."""
    return {name: max(net.spaces[name].width(net.current), 1) for name in spaces}
