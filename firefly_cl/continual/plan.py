"""How firefly treats one task: seed units, growth steps, when to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from firefly_cl.continual.distillation import Distillation
from firefly_cl.continual.lateral_probe import LateralProbe
from firefly_cl.continual.learner import read_options
from firefly_cl.errors import ConfigurationError
from firefly_cl.gates.pruning import GatePruning
from firefly_cl.gates.selection import GateSelection
from firefly_cl.gates.tolerance import Tolerance
from firefly_cl.growth.budget import check_cost
from firefly_cl.network import FireflyNet
from firefly_cl.search_space import Choice, Range, searched

COPYING = ("copies", "nearest")
"""Starts of a task from copies of an older one's units: of the one before, or of the nearest."""


@dataclass(frozen=True)
class Plan:
    """The phases of a task.

    seed: own units that a later task starts with, as a share of the first task's width of the same
    space, which growth and pruning may have changed. early: a further factor on that in spaces on
    the finest maps, where a unit costs the most operations and older units serve best. shared: of
    the spaces, from the input on, the share whose older units a later task reads; behind them it
    has a network of its own, which costs later tasks nothing. private: as `seed`, in the spaces
    that are not shared. start: what the units of those spaces are at first: "random", or copies of
    all those of the task before ("copies") or of that older task whose features tell the new
    classes apart best ("nearest", by `probe_accuracy` on training images), which train while the
    originals stay frozen; random units join them where they are fewer than `private` says.
    copies_rate: a factor on the learning rate of tasks that begin with copies; `TrainingPlugin`
    heeds it. growth: what one growth step adds, as a share of the task's own (in the currency
    `cost`); a step makes up for what those before it left of their budget. latency: file of the
    timings that the currency latency is read from and measured into ("": they are kept in memory,
    and with the model). grow_at: shares of a task's epochs after which it grows. restart: whether
    the learning-rate schedule begins anew then. patience: stop growing in a task once the
    validation loss fell by less than this share of itself since the step before. criterion,
    settings: which growth criterion, and its own, as values or text. select_at: shares of a task's
    epochs after which `selection` decides which older units it goes on reading. prune_at: shares
    after which `gates` remove some of its own units. `restart` counts for both too.
    prune_tolerance: how far accuracy on validation images may fall by that; the price is then
    searched for, beginning at that of `gates`. None: it is that. distillation: how much a task's
    network before the first pruning teaches what is left of it. lateral: how a trained task's head
    also reads, by a linear classifier, what all units of the nearest older tasks compute, if it
    does. These are then computed for its answers too. validation: held out of an experience that
    comes without a validation stream.
    """

    seed: float = 0.25
    early: float = 0.5
    shared: float = 1.0
    private: float = 0.5
    start: str = "random"
    copies_rate: float = 1.0
    growth: float = 0.25
    cost: str = "parameters"
    latency: str = ""
    grow_at: tuple[float, ...] = (0.2, 0.4)
    restart: bool = False
    patience: float = 0.01
    criterion: str = "firefly"
    settings: Mapping[str, float | str] = field(default_factory=dict)
    select_at: tuple[float, ...] = ()
    selection: GateSelection = field(default_factory=GateSelection)
    prune_at: tuple[float, ...] = ()
    gates: GatePruning = field(default_factory=GatePruning)
    prune_tolerance: Tolerance | None = None
    distillation: Distillation = field(default_factory=Distillation)
    lateral: LateralProbe = field(default_factory=LateralProbe)
    validation: float = 0.1

    def __post_init__(self) -> None:
        """Raise ConfigurationError for shares that cannot work."""
        for name in ("seed", "early", "private", "growth"):
            if not isinstance(getattr(self, name), int | float):
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}: give a number")
            if not 0 <= getattr(self, name) <= 10:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: it must be in [0, 10]")
        if not 0 <= self.shared <= 1:
            raise ConfigurationError(f"shared is {self.shared}: it must be in [0, 1]")
        if self.start not in ("random", *COPYING):
            raise ConfigurationError(
                f"start {self.start!r} is unknown: use random, {' or '.join(COPYING)}"
            )
        if not 0 < self.copies_rate <= 10:
            raise ConfigurationError(
                f"copies_rate is {self.copies_rate}: it must be above 0 and at most 10"
            )
        check_cost(self.cost)
        if self.latency and self.cost != "latency":
            raise ConfigurationError(
                f"latency is {self.latency!r}, a file of timings, and growth is counted in "
                f"{self.cost}: leave it out, or count in latency"
            )
        if not 0 <= self.validation < 1:
            raise ConfigurationError(f"validation is {self.validation}: it must be in [0, 1)")
        for name in ("grow_at", "select_at", "prune_at"):
            if not isinstance(getattr(self, name), tuple):
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)!r}: give a tuple of shares, as in (0.2, 0.4)"
                )
            if any(not 0 < share < 1 for share in getattr(self, name)):
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}: shares must lie between 0 and 1"
                )
        if self.prune_tolerance is not None:
            self.prune_tolerance.check(self.gates)

    def seed_widths(self, net: FireflyNet, source: int | None = None) -> dict[str, int]:
        """Seed units of each growable space for the next task of `net`, at least one each.

        source: the task that copies are of, the newest unless told.
        """
        source = net.current if source is None else source
        growable = net.growable_spaces()
        maps = [n.size for name in growable for n in net.producers(name) if not n.flat]
        finest = max(maps, default=net.nodes[0].size)
        shared = self._shared_spaces(net)
        widths = {}
        for name in growable:
            share = self.seed if name in shared else self.private
            if any(node.size == finest for node in net.producers(name)):
                share *= self.early
            widths[name] = max(1, round(share * net.spaces[name].width(0)))
            if self.start in COPYING and name not in shared:
                widths[name] = max(widths[name], net.spaces[name].width(source))
        return widths

    def reads(self, net: FireflyNet) -> dict[str, Tensor]:
        """Older units that the next task of `net` may read, by space."""
        shared = self._shared_spaces(net)
        task = len(net.tasks)
        return {
            name: torch.arange(space.before(task) if space.fixed or name in shared else 0)
            for name, space in net.spaces.items()
        }

    def originals(self, net: FireflyNet, source: int | None = None) -> dict[str, Tensor]:
        """Units of an older task that those of the newest task of `net` start from, by space.

        source: their owner, the task before unless told.
        """
        if self.start not in COPYING:
            return {}
        shared, task = self._shared_spaces(net), net.current
        source = task - 1 if source is None else source
        return {
            name: net.spaces[name].owned(source)[: net.spaces[name].width(task)]
            for name in net.growable_spaces()
            if name not in shared
        }

    def _shared_spaces(self, net: FireflyNet) -> list[str]:
        """Those of the first layers; of inserted ones those that write to such alone.

        So what is shared stays so, whatever layers later tasks insert.
        """
        first = [name for name in net.growable_spaces() if net.spaces[name].width(0)]
        shared = set(first[: round(self.shared * len(first))])
        for node in net.nodes:
            if node.attributes.get("residual") and node.name in net.layers:
                (inserted,) = {s.space for s in net.node(node.inputs[0]).layout}
                if inserted not in first and all(s.space in shared for s in node.layout):
                    shared.add(inserted)
        return [name for name in net.growable_spaces() if name in shared]


def require_one_plan(of_model: Plan, plan: Plan) -> None:
    """Raise ConfigurationError where a FireflyModel's plan is not that of strategy or plugin."""
    others = [f.name for f in fields(Plan) if getattr(plan, f.name) != getattr(of_model, f.name)]
    if others:
        raise ConfigurationError(
            f"the FireflyModel has a plan with another {', '.join(others)}: give the same plan to "
            "the model and to the strategy or plugin"
        )


SETTINGS = "settings."
"""Begins the names of options that are settings of the growth criterion."""


@dataclass(frozen=True)
class Options:
    """What `--option` takes besides settings of the criterion; see Plan."""

    seed: float = Plan.seed
    early: float = Plan.early
    shared: float = Plan.shared
    private: float = Plan.private
    start: str = Plan.start
    copies_rate: float = Plan.copies_rate
    growth: float = Plan.growth
    cost: str = Plan.cost
    latency: str = Plan.latency
    grow_at: str = ",".join(map(str, Plan.grow_at))
    restart: bool = searched(Plan.restart, Choice((False, True)))
    patience: float = searched(Plan.patience, Range(1e-3, 0.1, log=True))
    criterion: str = Plan.criterion
    select_at: str = ""
    select_lam: float = GateSelection.lam
    prune_at: str = ""
    prune_keep: str = ""
    prune_tolerance: str = ""
    prune_tries: int = Tolerance.tries
    lam: float = GatePruning.lam
    gate_cost: str = GatePruning.cost
    gate_epochs: int = GatePruning.epochs
    distil: float = Distillation.weight
    distil_temperature: float = Distillation.temperature
    lateral: float = LateralProbe.weight
    lateral_decay: float = LateralProbe.decay
    lateral_tasks: int = LateralProbe.tasks

    def plan(self, settings: Mapping[str, str]) -> Plan:
        """As a plan, with settings of the criterion; raises ConfigurationError."""
        prune_at = _shares("prune-at", self.prune_at)
        return Plan(
            seed=self.seed,
            early=self.early,
            shared=self.shared,
            private=self.private,
            start=self.start,
            copies_rate=self.copies_rate,
            growth=self.growth,
            cost=self.cost,
            latency=self.latency,
            grow_at=_shares("grow-at", self.grow_at),
            restart=self.restart,
            patience=self.patience,
            criterion=self.criterion,
            settings=settings,
            select_at=_shares("select-at", self.select_at),
            selection=GateSelection(self.select_lam, self.gate_cost, self.gate_epochs),
            prune_at=prune_at,
            gates=GatePruning(
                self.lam,
                self.gate_cost,
                self.gate_epochs,
                share=_each(self.prune_keep, len(prune_at)),
            ),
            prune_tolerance=_tolerance(self.prune_tolerance, self.prune_tries),
            distillation=Distillation(self.distil, self.distil_temperature),
            lateral=LateralProbe(self.lateral, self.lateral_decay, self.lateral_tasks),
        )


def _shares(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(share) for share in text.split(",") if share.strip())
    except ValueError:
        raise ConfigurationError(
            f"option {option} is {text!r}: give shares of the epochs such as 0.2,0.4"
        ) from None


def _each(keep: str, times: int) -> float | None:
    """What each of several prunings keeps, so that all together keep a share."""
    if not keep.strip():
        return None
    try:
        share = float(keep)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ConfigurationError(
            f"option prune-keep is {keep!r}: give the share of its cost that a task keeps, above 0 "
            "and at most 1, or nothing for a price"
        )
    return float(share ** (1 / max(times, 1)))


def _tolerance(text: str, tries: int) -> Tolerance | None:
    if not text.strip():
        return None
    try:
        fall = float(text)
    except ValueError:
        raise ConfigurationError(
            f"option prune-tolerance is {text!r}: give a fraction of accuracy such as 0.005, or "
            "nothing for a fixed price"
        ) from None
    return Tolerance(fall, tries)


def plan_of(options: Mapping[str, str]) -> Plan:
    """The plan that options make; those named settings.NAME go to the growth criterion.

    Raises ConfigurationError.
    """
    settings = {k.removeprefix(SETTINGS): v for k, v in options.items() if k.startswith(SETTINGS)}
    rest = {k: v for k, v in options.items() if not k.startswith(SETTINGS)}
    given = {name.replace("-", "_") for name, value in rest.items() if value.strip()}
    if {"lam", "prune_keep"} <= given:
        raise ConfigurationError(
            "option prune-keep is in place of the price lam: leave lam out, or give prune-keep="
        )
    return read_options(rest, Options).plan(settings)
