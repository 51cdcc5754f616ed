"""Growing one network on one dataset: training rounds with a growth step between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from firefly_cl.benchmark.configuration import parse_settings
from firefly_cl.benchmark.plan import Request, scoped
from firefly_cl.benchmark.presets import GROWTH, Preset
from firefly_cl.errors import ConfigurationError

DATASETS = {
    "digits": "split-digits",
    "cifar10": "split-cifar10",
    "cifar100": "split-cifar100",
    "folder": "image-folder",
}
"""Datasets of `grow` and `prune`, and the scenarios that hold them, here learnt in one task."""

_OWNED = {
    "criterion": "--criterion",
    "growth": "--growth",
    "cost": "--cost",
    "grow_at": "--rounds",
    "restart": "--rounds",
    "patience": "--rounds",
}


def one_task(data: str, presets: Mapping[str, Preset]) -> tuple[str, Preset]:
    """The scenario of a dataset and its preset; raises ConfigurationError."""
    if data not in DATASETS:
        raise ConfigurationError(f"--data is {data!r}: choose from {', '.join(DATASETS)}")
    scenario = DATASETS[data]
    return scenario, presets[scenario]


def refuse_owned(common: Request, owned: Mapping[str, str]) -> None:
    """Raise ConfigurationError for an option that a command sets itself, or epochs in the recipe.

    owned: the flag that each such option follows from.
    """
    for name in scoped(common.options, "--option", "firefly", ("firefly",)):
        if name in owned:
            raise ConfigurationError(f"--option {name} follows from {owned[name]} here: give that")
    if "epochs" in parse_settings(common.recipe, "--recipe"):
        raise ConfigurationError("--recipe epochs is --epochs here, of each training: give that")


def growth_requests(
    common: Request, data: str, criteria: Sequence[str], rounds: int, growth: float, cost: str
) -> list[Request]:
    """What to run for each criterion: the same seed network, budget and epochs for all.

    common: with `epochs` for one round; there is one more round than growth steps. growth: what a
    step adds, as a share of what the network has in the currency `cost`. Raises
    ConfigurationError, UnknownName.
    """
    from firefly_cl.growth import CRITERIA

    scenario, preset = one_task(data, GROWTH)
    refuse_owned(common, _OWNED)
    if rounds < 1:
        raise ConfigurationError(f"--rounds is {rounds}: give 1 or more")
    if not 0 < growth <= 10:
        raise ConfigurationError(
            f"--growth is {growth}: give a share above 0 and at most 10, such as 0.25"
        )
    for criterion in criteria:
        CRITERIA.describe(criterion)
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
                criterion=criterion,
                growth=str(growth),
                cost=cost,
                grow_at=shares,
                restart="true",
                patience="-10",
            ),
            settings=[
                f"{name}={value}"
                for name, value in scoped(common.settings, "--setting", criterion, criteria).items()
            ],
        )
        for criterion in criteria
    ]
