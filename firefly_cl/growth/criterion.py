"""What a growth criterion is: it looks at candidates beside the network and commits winners."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from firefly_cl.errors import BudgetTooSmall, ConfigurationError, DivergenceError, EditError
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget, Candidate, unit_cost
from firefly_cl.network import FireflyNet
from firefly_cl.network.rebuild import Edit
from firefly_cl.network.rows import bare_producer
from firefly_cl.settings import read_settings

Model = Callable[[Tensor], Tensor]
Loss = Callable[[Model, Any], Tensor]
"""Mean loss (a scalar) of a model, (B, ...) to (B, classes), on one batch of any form."""

Autocast = Callable[[], AbstractContextManager[Any]]


def finite(value: Tensor, where: str = "a growth step") -> Tensor:
    """A loss as it is; raises DivergenceError if it is not finite."""
    if not bool(torch.isfinite(value)):
        raise DivergenceError(
            f"the loss is {float(value.detach())} in {where}: lower the learning rate "
            "or look for damaged inputs"
        )
    return value


def require_batches(batches: Sequence[Any]) -> None:
    """Raise ConfigurationError where there is no batch to grow by, or a loader in place of some."""
    if not isinstance(batches, Sequence):
        raise ConfigurationError(
            f"batches are a {type(batches).__name__}: give a list, such as "
            "list(itertools.islice(loader, 16))"
        )
    if not batches:
        raise ConfigurationError("growth needs at least one batch of training data")


def require_positive(criterion: str, **settings: float) -> None:
    """Raise ConfigurationError unless these settings of a criterion are above 0 and finite."""
    for name, value in settings.items():
        if not 0 < value < float("inf"):
            raise ConfigurationError(f"{name} of {criterion} growth must be above 0, not {value}")


@dataclass(frozen=True)
class Growth:
    """What one growth step did: the edits in order, and the candidates that won.

    scored: all that a gain was predicted for, by criteria that do.
    """

    edits: list[Edit] = field(default_factory=list)
    kept: list[Candidate] = field(default_factory=list)
    scored: Sequence[Candidate] = ()

    @property
    def gain(self) -> float:
        """The decrease of the loss that the criterion predicts."""
        return sum(candidate.gain for candidate in self.kept)

    def by_kind(self) -> dict[str, int]:
        """Units added by kind (split, copy, unlock, new, deeper, a scheme)."""
        return self._count(lambda candidate: candidate.kind)

    def by_space(self) -> dict[str, int]:
        """Units added by space, those of inserted layers by the node that they stand behind."""
        return self._count(lambda candidate: candidate.space)

    def scores(self) -> dict[str, list[float]]:
        """Predicted gains of all scored candidates, by kind."""
        gains: dict[str, list[float]] = {}
        for candidate in self.scored:
            gains.setdefault(candidate.kind, []).append(candidate.gain)
        return gains

    def _count(self, key: Callable[[Candidate], str]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for candidate in self.kept:
            counts[key(candidate)] = counts.get(key(candidate), 0) + candidate.units
        return counts


class Criterion(Protocol):
    """Grows the newest task of a network by what a budget allows.

    loss is seen only as a function of a model and a batch. autocast surrounds passes that may
    run in a lower precision. Nothing of the network changes but by the edits returned.
    """

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
        """One growth step on some batches of training data.

        validation: batches held out of it, for criteria that choose among several tries.
        """


def criterion_of(name: str, settings: Mapping[str, object]) -> Criterion:
    """The criterion registered as `name`; settings: its fields, as values or text.

    Raises UnknownName, and ConfigurationError for settings that cannot work.
    """
    made: Criterion = read_settings(settings, CRITERIA.get(name), f"{name} setting")
    return made


def open_spaces(net: FireflyNet, budget: Budget, places: Sequence[str] = ()) -> dict[str, float]:
    """Spaces in which the newest task could grow, with the cost of one unit in each.

    places: nodes behind which a layer could be inserted, counted among the spaces. Raises
    EditError when there is none, BudgetTooSmall when the budget does not pay for one unit.
    """
    if not net.tasks or net.tasks[-1].frozen:
        raise EditError(f"task {net.current} is frozen: begin a task before growing")
    spaces = [
        name
        for name in net.growable_spaces()
        if _written_once(net, name) and bare_producer(net, name) is None
    ]
    costs = {name: unit_cost(net, name, budget.cost, budget.latency) for name in (*spaces, *places)}
    if not costs:
        raise EditError(
            "the network has nothing to grow: every space is its input or its head, stands twice "
            "in a norm or in a layer that writes it, or is written by a layer that reads no unit"
        )
    cheapest = min(costs.values())
    if cheapest > budget.amount:
        raise BudgetTooSmall(
            f"a growth budget of {budget.amount} {budget.unit} buys no unit: the cheapest costs "
            f"{cheapest}"
        )
    return costs


def _written_once(net: FireflyNet, space: str) -> bool:
    """Whether a space has layers with rows in it, and stands once in each, and in each norm."""
    producers = net.producers(space)
    return bool(producers) and all(
        sum(s.space == space for s in node.layout) == 1 for node in (*producers, *net.norms(space))
    )
