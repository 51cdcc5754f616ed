"""Pruning one network on one dataset by gates, at one price of a unit or at several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from firefly_cl.benchmark.plan import Request, parse_names, scoped
from firefly_cl.benchmark.presets import PRUNING
from firefly_cl.benchmark.rounds import one_task, refuse_owned
from firefly_cl.errors import ConfigurationError

_OWNED = {
    "lam": "--lam",
    "prune_at": "--rounds",
    "grow_at": "--rounds",
    "restart": "--rounds",
    "gate_cost": "--cost",
    "gate_epochs": "--gate-epochs",
}


def pruning_requests(
    common: Request, data: str, lams: Sequence[float], rounds: int, cost: str, gate_epochs: int
) -> list[Request]:
    """What to run for each price `lam`: the same network and epochs for all.

    common: with `epochs` of one training; there is one before the first round of gates and one
    after each. Raises ConfigurationError.
    """
    from firefly_cl.gates.pruning import GatePruning

    scenario, preset = one_task(data, PRUNING)
    refuse_owned(common, _OWNED)
    tolerant = "prune_tolerance" in scoped(common.options, "--option", "firefly", ("firefly",))
    if tolerant and len(lams) > 1:
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
    for lam in lams:
        GatePruning(lam=lam, cost=cost)
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
                lam=f"{lam:g}",
                gate_cost=cost,
                gate_epochs=str(gate_epochs),
                restart="true",
            ),
        )
        for lam in lams
    ]


def parse_lams(text: str) -> tuple[float, ...]:
    """Comma-separated prices of a unit, 0 or more, each once; raises ConfigurationError."""
    lams = []
    for part in parse_names(text, "--lam"):
        try:
            lam = float(f"{float(part):g}")
        except ValueError:
            lam = math.nan
        if not 0 <= lam < math.inf:
            raise ConfigurationError(
                f"--lam has {part!r}: give prices of a unit from 0, for example 1e-4,1e-3"
            )
        lams.append(lam)
    return tuple(dict.fromkeys(lams))
