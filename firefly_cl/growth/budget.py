"""Selection under a budget: what a unit costs, and which candidates are worth it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from firefly_cl.errors import ConfigurationError
from firefly_cl.growth.latency import LatencyTable
from firefly_cl.network import FireflyNet
from firefly_cl.network.deeper import deeper_layer
from firefly_cl.network.graph import Node
from firefly_cl.network.space import Layout

COSTS = ("units", "parameters", "flops")
"""What is counted."""

LATENCY = "latency"
"""What is measured, in milliseconds of one image."""

_LEAST = 1e-6
"""Milliseconds that a unit takes at least, where timings do not tell it from none."""


def check_cost(cost: str) -> None:
    """Raise ConfigurationError for a currency that is not known."""
    if cost not in (*COSTS, LATENCY):
        known = ", ".join((*COSTS, LATENCY))
        raise ConfigurationError(f"cost {cost!r} is unknown: use {known}")


@dataclass(frozen=True)
class Budget:
    """How much one growth step may add: units, parameters (floats stored), FLOPs or latency.

    floats: how many numbers it may add besides, whatever it is counted in (None: no limit).
    latency: timings of layers, where the amount is in milliseconds.
    """

    amount: float
    cost: str = "units"
    floats: int | None = None
    latency: LatencyTable | None = None

    def __post_init__(self) -> None:
        """Raise ConfigurationError for a cost that is not known or an amount that buys nothing."""
        check_cost(self.cost)
        if self.cost == LATENCY and self.latency is None:
            raise ConfigurationError("a growth budget in latency needs a LatencyTable: give one")
        if not 0 < self.amount < math.inf or (self.cost != LATENCY and self.amount < 1):
            least = "more than 0 milliseconds" if self.cost == LATENCY else "1 or more"
            raise ConfigurationError(f"a growth budget of {self.amount} buys nothing: give {least}")

    @property
    def unit(self) -> str:
        """What the amount is a number of."""
        return "milliseconds" if self.cost == LATENCY else self.cost


@dataclass(frozen=True)
class Candidate:
    """One unit that could be added, or the copies of a splitting scheme.

    kind: split, copy, new, unlock, deeper or a scheme. space: where, for a deeper unit the node
    that its layer would stand behind. unit: its number among the task's own units (split, copy,
    schemes), the new candidates (new, deeper) or all older units (unlock) of the space. gain:
    expected decrease of the loss. cost: in the budget's currency. sign: of its gate. units: it
    adds. slope: of the loss by its gate, where a gain comes from one.
    """

    kind: str
    space: str
    unit: int
    gain: float
    cost: float
    sign: float = 1.0
    units: int = 1
    slope: float = 0.0


def unit_cost(net: FireflyNet, space: str, cost: str, latency: LatencyTable | None = None) -> float:
    """What one more own unit in `space` adds for the newest task, in a currency.

    `space` may be a node, for the hidden unit of a layer inserted behind it. FLOPs and latency
    are those of one image.
    """
    return growth_cost(net, {space: 1}, cost, latency)


def growth_cost(
    net: FireflyNet, more: Mapping[str, int], cost: str, latency: LatencyTable | None = None
) -> float:
    """What `more` own units by space add for the newest task, in a currency.

    Beyond the sum over units it counts the weights between new units of neighbouring spaces.
    Keys that are nodes stand for layers inserted behind them, with so many hidden units.
    """
    if cost == "units":
        return sum(more.values())
    added = own_cost(net, cost, latency, more) - own_cost(net, cost, latency)
    return max(added, _LEAST * sum(more.values())) if cost == LATENCY else added


def own_cost(
    net: FireflyNet,
    cost: str,
    latency: LatencyTable | None = None,
    more: Mapping[str, int] | None = None,
) -> float:
    """What the newest task's own rows take, with `more` own units by space, in a currency.

    Latency is that of convolutions and linear layers: norms and activations take little beside
    them, or nothing where they are fused.
    """
    total: float = 0
    for node, reads, rows, columns in _own_layers(net, more or {}):
        attributes = node.attributes
        if node.kind == "norm":
            total += rows * (4 if attributes["affine"] else 2) if cost == "parameters" else 0
        elif latency is not None and cost == LATENCY:
            total += latency.milliseconds(net, node, reads, rows, columns)
        else:
            positions = 2 * node.size if cost == "flops" else 1
            total += rows * columns * positions * math.prod(attributes.get("kernel", ()))
            if cost == "parameters" and attributes["bias"]:
                total += rows
    return total


def _own_layers(net: FireflyNet, more: Mapping[str, int]) -> Iterator[tuple[Node, Node, int, int]]:
    """Layers and norms, what they read, own rows and columns of these, with `more` own units."""
    task, more = net.tasks[-1], dict(more)
    nodes = [(node, net.node(node.inputs[0])) for node in net.nodes if node.inputs]
    for place in [name for name in more if name not in net.spaces]:
        made = deeper_layer(net, place)
        more[made.space] = more.pop(place)
        nodes += zip(made.nodes, (made.after, *made.nodes), strict=False)
    own = {name: space.width(net.current) for name, space in net.spaces.items()}
    own = {name: own.get(name, 0) + more.get(name, 0) for name in (*own, *more)}
    read = {name: units + len(task.reads.get(name, ())) for name, units in own.items()}
    for node, reads in nodes:
        if node.kind not in ("norm", "conv", "linear", "head"):
            continue
        rows = task.classes if node.kind == "head" else _channels(node.layout, own)
        if node.kind != "norm" and node.attributes["per_unit"]:
            columns = reads.layout[0].repeat
        else:
            columns = _channels(reads.layout, read)
        yield node, reads, rows, columns


def _channels(layout: Layout, units: Mapping[str, int]) -> int:
    return sum(s.repeat * units[s.space] for s in layout)


def select(
    candidates: Sequence[Candidate],
    budget: Budget,
    most: Mapping[str, int],
    together: Callable[[Mapping[str, int]], float] | None = None,
) -> list[Candidate]:
    """The candidates to keep: greatest gain for their cost first, while the budget lasts.

    most: how many units each space may gain; a layer at most doubles in one step (method.md
    section 3). together: the cost of so many units by space, where it is more than the sum of
    the candidates'. Candidates without gain are never kept.
    """
    return take(by_worth(candidates), budget, most, together)


def by_worth(
    candidates: Sequence[Candidate], widths: Mapping[str, int] | None = None, returns: float = 0.0
) -> list[Candidate]:
    """The candidates with a gain, the greatest for its cost first.

    widths: units that each space has. returns: above 0, a unit that comes k-th in a space of w is
    worth (w / (w + k)) ** returns of its gain, for those of one space do much the same.
    """
    found: list[tuple[float, Candidate]] = []
    ranks: dict[str, int] = {}
    for candidate in sorted((c for c in candidates if c.gain > 0), key=_worth, reverse=True):
        rank = ranks.get(candidate.space, 0)
        ranks[candidate.space] = rank + candidate.units
        width = max((widths or {}).get(candidate.space, 1), 1)
        found.append((_worth(candidate) * (width / (width + rank)) ** returns, candidate))
    return [candidate for _, candidate in sorted(found, key=lambda each: each[0], reverse=True)]


def take(
    candidates: Iterable[Candidate],
    budget: Budget,
    most: Mapping[str, int],
    together: Callable[[Mapping[str, int]], float] | None = None,
) -> list[Candidate]:
    """The candidates to keep in the order given, each that the budget still pays for.

    For criteria that draw instead of predicting a gain; most and together as in `select`.
    """
    counts: dict[str, int] = {}
    spent: float = 0
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


def step_cost(net: FireflyNet, more: Mapping[str, int], budget: Budget) -> float:
    """Cost of `more` units by space; infinite where they need too many floats."""
    if budget.floats is not None and growth_cost(net, more, "parameters") > budget.floats:
        return math.inf
    return growth_cost(net, more, budget.cost, budget.latency)


def _worth(candidate: Candidate) -> float:
    return candidate.gain / candidate.cost


def room_to_double(net: FireflyNet, spaces: Sequence[str]) -> dict[str, int]:
    """How many units each space may gain in one step: as many as the task has there, or one."""
    return {name: max(net.spaces[name].width(net.current), 1) for name in spaces}
