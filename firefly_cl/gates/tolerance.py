"""Pruning to a tolerance: the dearest units that accuracy on validation images can bear."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from firefly_cl.errors import ConfigurationError
from firefly_cl.gates.pruning import GatePruning, Pruning, prunable_spaces
from firefly_cl.gates.scaled_sigmoid import Gates
from firefly_cl.gates.statistics import restate
from firefly_cl.growth.criterion import Autocast, Loss
from firefly_cl.network import FireflyNet

Accuracy = Callable[[FireflyNet], float]
"""Accuracy of a network's newest task on validation images, in [0, 1]."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Try:
    """One price: own units that it left in the spaces that can lose some, accuracy with these.

    borne: whether accuracy stayed within the tolerance.
    """

    lam: float
    units: int
    accuracy: float
    borne: bool


@dataclass(frozen=True)
class TolerantPruning:
    """What was removed, at which price (None: nothing was, none could be borne), and the tries.

    accuracy: what the tries were compared with.
    """

    pruning: Pruning
    lam: float | None
    accuracy: float
    tries: list[Try]

    def told(self) -> dict[str, object]:
        """What is told of the pruning, price, reference and tries as plain values."""
        tries = [asdict(attempt) for attempt in self.tries]
        sought = {"lam": self.lam, "reference_accuracy": self.accuracy, "tries": tries}
        return {**self.pruning.told(), **sought}


@dataclass(frozen=True)
class Tolerance:
    """How far validation accuracy may fall when units are removed, before training goes on.

    fall: as a fraction of accuracy, 0.005 for half a point. tries: searches of gates, each at a
    price of its own: the first at that of the gates, the next `factor` times dearer while
    accuracy bears it or cheaper while it does not, and then between the two nearest.
    """

    fall: float = 0.005
    tries: int = 6
    factor: float = 4.0

    def __post_init__(self) -> None:
        """Raise ConfigurationError for settings that cannot work."""
        for name, good, expected in (
            ("fall", 0 <= self.fall <= 1, "a fraction from 0 to 1"),
            ("tries", self.tries >= 1, "1 or more"),
            ("factor", 1 < self.factor < math.inf, "above 1"),
        ):
            if not good:
                raise ConfigurationError(
                    f"{name} of a pruning tolerance is {getattr(self, name)}: it must be {expected}"
                )

    def check(self, gates: GatePruning) -> None:
        """Raise ConfigurationError for gates whose price cannot be raised."""
        if gates.share is not None:
            raise ConfigurationError(
                f"gates are to keep a share of {gates.share:g}, and a pruning to a tolerance looks "
                "for it: leave the share out, with option prune-keep= where a preset gives it"
            )
        if gates.lam == 0:
            raise ConfigurationError(
                "lam is 0: a pruning to a tolerance raises and lowers it, so begin above 0"
            )

    def prune(
        self,
        net: FireflyNet,
        gates: GatePruning,
        batches: Iterable[Any],
        loss: Loss,
        accuracy: Accuracy,
        autocast: Autocast = nullcontext,
    ) -> TolerantPruning:
        """Remove own units of the newest task at the highest price that accuracy bears.

        A try searches gates, removes units from a copy of the network and estimates the copy's
        running statistics anew. The reference is the better of the network as it is and with its
        own statistics estimated anew. The network becomes the copy that was best, or stays as it
        is. Each try walks through the same batches, as far as these draw from the global
        generator or one that is their attribute `generator`; both are as before afterwards.
        Raises NothingToPrune, EditError, DivergenceError, ConfigurationError; `net` is as it was
        then.
        """
        self.check(gates)
        spaces = prunable_spaces(net)
        data = batches, loss, autocast
        with rewound(net, batches):
            whole = deepcopy(net)
            restate(whole, *data)
        reference = max(accuracy(net), accuracy(whole))
        tries: list[Try] = []
        best: tuple[float, Gates, FireflyNet] | None = None
        lam, low, high = gates.lam, 0.0, math.inf
        for _ in range(self.tries):
            with rewound(net, batches):
                found = replace(gates, lam=lam).search(net, *data)
                copy = deepcopy(net)
                pruned = gates.remove(copy, found)
                restate(copy, *data)
            units, reached = sum(pruned.kept.values()), accuracy(copy)
            borne = reached >= reference - self.fall - _ROUNDING
            tries.append(Try(lam, units, reached, borne))
            if borne and pruned.edits:
                best = lam, found, copy
            if borne and units == len(spaces):
                break
            low, high = (lam, high) if borne else (low, lam)
            lam = _between(low, high, self.factor)
        if best is None:
            widths = {name: net.spaces[name].width(net.current) for name in spaces}
            nothing = Pruning([], dict.fromkeys(spaces, 0), widths, 0.0)
            return TolerantPruning(nothing, None, reference, tries)
        lam, found, copy = best
        pruning = gates.remove(net, found)
        net.load_state_dict(copy.state_dict())
        return TolerantPruning(pruning, lam, reference, tries)


def _between(low: float, high: float, factor: float) -> float:
    """The next price: dearer than all that were borne (`low`), cheaper than the others (`high`)."""
    if high == math.inf:
        return low * factor
    return math.sqrt(low * high) if low else high / factor


@contextmanager
def rewound(net: FireflyNet, batches: Iterable[Any]) -> Iterator[None]:
    """Random draws inside, the global ones and those of the batches, go on as if never made."""
    own = getattr(batches, "generator", None)
    states = [(own, own.get_state())] if isinstance(own, torch.Generator) else []
    device = next(net.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for generator, state in states:
            generator.set_state(state)
