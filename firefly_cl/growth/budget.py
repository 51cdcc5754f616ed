"""Selection under a budget: what a unit costs, and which candidates are worth it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from firefly_cl.errors import ConfigurationError
from firefly_cl.network import FireflyNet
from firefly_cl.network.deeper import deeper_layer
from firefly_cl.network.space import Layout

COSTS = ("units", "parameters", "flops")


@dataclass(frozen=True)
class Budget:
    """How much one growth step may add, counted in units, parameters (floats stored) or FLOPs.

    floats: how many numbers it may add besides, whatever it is counted in (None: no limit).
    """

    amount: int
    cost: str = "units"
    floats: int | None = None

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
    """One unit that could be added, or the copies of a splitting scheme.

    kind: split, copy, new, unlock, deeper or a scheme. space: where, for a deeper unit the node
    that its layer would stand behind. unit: its number among the task's own units (split, copy,
    schemes), the new candidates (new, deeper) or all older units (unlock) of the space. gain:
    expected decrease of the loss. cost: in the budget's currency. sign: of its gate. units: it
    adds.
    """

    kind: str
    space: str
    unit: int
    gain: float
    cost: int
    sign: float = 1.0
    units: int = 1


def unit_cost(net: FireflyNet, space: str, cost: str) -> int:
    """What one more own unit in `space` adds for the newest task, in a currency of COSTS.

    `space` may be a node, for the hidden unit of a layer inserted behind it. FLOPs are those of
    one image.
    """
    return growth_cost(net, {space: 1}, cost)


def growth_cost(net: FireflyNet, more: Mapping[str, int], cost: str) -> int:
    """What `more` own units by space add for the newest task, in a currency of COSTS.

    Beyond the sum over units it counts the weights between new units of neighbouring spaces.
    Keys that are nodes stand for layers inserted behind them, with so many hidden units.
    """
    if cost == "units":
        return sum(more.values())
    task = net.tasks[-1]
    own = {name: space.width(net.current) for name, space in net.spaces.items()}
    read = {name: len(task.reads[name]) + own[name] for name in net.spaces}
    more = dict(more)
    nodes = [(node, net.node(node.inputs[0]).layout) for node in net.nodes if node.inputs]
    for place in [name for name in more if name not in net.spaces]:
        made = deeper_layer(net, place)
        more[made.space] = more.pop(place)
        layouts = (made.after.layout, *(node.layout for node in made.nodes))
        nodes += zip(made.nodes, layouts, strict=False)
    total = 0
    for node, reads in nodes:
        writes = _channels(node.layout, more)
        if node.kind == "norm" and cost == "parameters":
            total += writes * (4 if node.attributes["affine"] else 2)
        if node.kind not in ("conv", "linear", "head"):
            continue
        rows = task.classes if node.kind == "head" else _channels(node.layout, own)
        if node.attributes["per_unit"]:
            weights = writes * reads[0].repeat
        else:
            columns = _channels(reads, read)
            weights = (rows + writes) * (columns + _channels(reads, more)) - rows * columns
        positions = 2 * node.size if cost == "flops" else 1
        total += weights * positions * math.prod(node.attributes.get("kernel", ()))
        if cost == "parameters" and node.attributes["bias"]:
            total += writes
    return total


def _channels(layout: Layout, units: Mapping[str, int]) -> int:
    return sum(s.repeat * units.get(s.space, 0) for s in layout)


def select(
    candidates: Sequence[Candidate],
    budget: Budget,
    most: Mapping[str, int],
    together: Callable[[Mapping[str, int]], int] | None = None,
) -> list[Candidate]:
    """The candidates to keep: greatest gain for their cost first, while the budget lasts.

    most: how many units each space may gain; a layer at most doubles in one step (method.md
    section 3). together: the cost of so many units by space, where it is more than the sum of
    the candidates'. Candidates without gain are never kept.
    """
    gainful = [candidate for candidate in candidates if candidate.gain > 0]
    return take(sorted(gainful, key=_worth, reverse=True), budget, most, together)


def take(
    candidates: Iterable[Candidate],
    budget: Budget,
    most: Mapping[str, int],
    together: Callable[[Mapping[str, int]], int] | None = None,
) -> list[Candidate]:
    """The candidates to keep in the order given, each that the budget still pays for.

    For criteria that draw instead of predicting a gain; most and together as in `select`.
    """
    counts: dict[str, int] = {}
    spent = 0
    kept = []
    for candidate in candidates:
        space = candidate.space
        count = counts.get(space, 0) + 1
        if count > most.get(space, 0):
            continue
        if together is None:
            cost = spent + candidate.cost
        else:
            cost = together({**counts, space: count})
        if cost > budget.amount:
            continue
        kept.append(candidate)
        counts[space] = count
        spent = cost
    return kept


def step_cost(net: FireflyNet, more: Mapping[str, int], budget: Budget) -> int:
    """Cost of `more` units by space; beyond the budget where they need too many floats."""
    if budget.floats is not None and growth_cost(net, more, "parameters") > budget.floats:
        return budget.amount + 1
    return growth_cost(net, more, budget.cost)


def _worth(candidate: Candidate) -> float:
    return candidate.gain / candidate.cost


def room_to_double(net: FireflyNet, spaces: Sequence[str]) -> dict[str, int]:
    """How many units each space may gain in one step: as many as the task has there, or one."""
    return {name: max(net.spaces[name].width(net.current), 1) for name in spaces}
