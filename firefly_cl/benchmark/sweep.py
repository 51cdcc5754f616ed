"""Pruning one network on one dataset by gates, at prices of a unit or to shares of its cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from firefly_cl.benchmark.plan import Request, parse_names, scoped
from firefly_cl.benchmark.presets import PRUNING
from firefly_cl.benchmark.rounds import one_task, refuse_owned
from firefly_cl.errors import ConfigurationError

DEFAULT = "1e-4"
"""The price of a unit where neither prices nor shares are told."""

_PRICES = "prices of a unit from 0, for example 1e-4,1e-3"
_SHARES = "shares of the network's cost above 0 and at most 1, for example 0.5,0.25"

_OWNED = {
    "lam": "--lam",
    "prune_keep": "--keep",
    "prune_at": "--rounds",
    "grow_at": "--rounds",
    "restart": "--rounds",
    "gate_cost": "--cost",
    "gate_epochs": "--gate-epochs",
}


@dataclass(frozen=True)
class Step:
    """One value of a sweep: a price of a unit, or the share of its cost that a network keeps."""

    value: float
    is_share: bool = False

    @property
    def name(self) -> str:
        """As in reports."""
        return f"{'keep' if self.is_share else 'lam'} {self.value:g}"

    @property
    def options(self) -> dict[str, str]:
        """As options of firefly."""
        return {"prune_keep" if self.is_share else "lam": f"{self.value:g}"}


def pruning_requests(
    common: Request, data: str, steps: Sequence[Step], rounds: int, cost: str, gate_epochs: int
) -> list[Request]:
    """What to run for each step of a sweep: the same network and epochs for all.

    common: with `epochs` of one training; there is one before the first round of gates and one
    after each. Raises ConfigurationError.
    """
    from firefly_cl.gates.pruning import GatePruning

    scenario, preset = one_task(data, PRUNING)
    refuse_owned(common, _OWNED)
    tolerant = "prune_tolerance" in scoped(common.options, "--option", "firefly", ("firefly",))
    if tolerant and (len(steps) > 1 or steps[0].is_share):
        raise ConfigurationError(
            "with --option prune-tolerance one price is found by search: give one --lam to begin at"
        )
    if common.settings:
        raise ConfigurationError("--setting is for growth criteria, and prune grows nothing")
    if rounds < 1:
        raise ConfigurationError(f"--rounds is {rounds}: give 1 or more")
    if gate_epochs < 1:
        raise ConfigurationError(f"--gate-epochs is {gate_epochs}: give 1 or more")
    if common.constant_width == 1:
        raise ConfigurationError(
            "--constant-width 1 leaves nothing to prune: one unit of a layer stays in any case"
        )
    GatePruning(cost=cost)
    epochs = common.epochs if common.epochs is not None else preset.recipe["epochs"]
    shares = ",".join(f"{(step + 1) / (rounds + 1):.9f}" for step in range(rounds))
    return [
        replace(
            common,
            scenario=scenario,
            strategies=("firefly",),
            split_into=1,
            epochs=epochs * (rounds + 1),
            preset=preset.with_options(
                grow_at="",
                prune_at=shares,
                **step.options,
                gate_cost=cost,
                gate_epochs=str(gate_epochs),
                restart="true",
            ),
        )
        for step in steps
    ]


def parse_steps(lam: str | None, keep: str | None) -> tuple[Step, ...]:
    """The steps of a sweep over prices or over shares, with commas between; each once.

    Raises ConfigurationError, where both are given too.
    """
    if keep is None:
        return tuple(
            Step(v) for v in _values(DEFAULT if lam is None else lam, "--lam", _is_price, _PRICES)
        )
    if lam is not None:
        raise ConfigurationError("--keep finds the price itself: leave --lam out, or --keep")
    return tuple(Step(v, True) for v in _values(keep, "--keep", _is_share, _SHARES))


def _is_price(value: float) -> bool:
    return 0 <= value < math.inf


def _is_share(value: float) -> bool:
    return 0 < value <= 1


def _values(
    text: str, option: str, good: Callable[[float], bool], expected: str
) -> tuple[float, ...]:
    values = []
    for part in parse_names(text, option):
        try:
            value = float(f"{float(part):g}")
        except ValueError:
            value = math.nan
        if not good(value):
            raise ConfigurationError(f"{option} has {part!r}: give {expected}")
        values.append(value)
    return tuple(dict.fromkeys(values))
