"""The plan of a run: which cells, with which settings, from names, presets and what was asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from firefly_cl.benchmark.configuration import (
    Cell,
    merged,
    parse_pairs,
    parse_settings,
    recipe_as_json,
    recipe_from,
)
from firefly_cl.benchmark.presets import OF_RECIPE, Preset, preset_of
from firefly_cl.errors import ConfigurationError

AUTO = "auto"
"""The device that is CUDA where torch has it, and the CPU elsewhere."""

GROWING = "firefly"
"""The strategy that grows by a criterion."""

BUDGETED = (GROWING, "pnn")
"""Strategies that keep to a number of floats."""


@dataclass(frozen=True)
class Request:
    """What a user asked to run; None leaves a setting to the preset, the scenario's unless given.

    `recipe` holds `name=value` of recipe settings, `options` `name=value` or
    `STRATEGY.name=value` of strategy-specific ones, `settings` `name=value` or
    `CRITERION.name=value` of settings of the growth criterion.
    """

    scenario: str
    strategies: Sequence[str]
    seeds: Sequence[int]
    tasks: int | None = None
    split_into: int | None = None
    validation: float = 0.1
    evaluate_on: str = "test"
    class_incremental: bool = False
    image_size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    backbone: str | None = None
    width: float | None = None
    constant_width: int | None = None
    budget: int | None = None
    device: str = AUTO
    recipe: Sequence[str] = field(default_factory=tuple)
    options: Sequence[str] = field(default_factory=tuple)
    settings: Sequence[str] = field(default_factory=tuple)
    preset: Preset | None = None


def check(request: Request) -> None:
    """Raise ConfigurationError for an unknown name or a bad number; imports no torch."""
    from firefly_cl.continual import STRATEGIES
    from firefly_cl.scenarios import SCENARIOS
    from firefly_cl.zoo import BACKBONES

    SCENARIOS.describe(request.scenario)
    for strategy in request.strategies:
        STRATEGIES.describe(strategy)
    if request.backbone is not None:
        BACKBONES.describe(request.backbone)
    for option, value, least in (
        ("--tasks", request.tasks, 1),
        ("--split-into", request.split_into, 1),
        ("--image-size", request.image_size, 1),
        ("--epochs", request.epochs, 1),
        ("--batch-size", request.batch_size, 2),
        ("--constant-width", request.constant_width, 1),
        ("--budget", request.budget, 1),
    ):
        if value is not None and value < least:
            raise ConfigurationError(f"{option} is {value}: give {least} or more")
    if request.width is not None and not 0 < request.width < float("inf"):
        raise ConfigurationError(f"--width is {request.width}: give a number above 0")
    if request.width is not None and request.constant_width is not None:
        raise ConfigurationError("--width and --constant-width are two widths: give one of them")
    if not 0 <= request.validation < 1:
        raise ConfigurationError(
            f"--validation is {request.validation}: give a fraction from 0 to below 1"
        )
    if request.evaluate_on not in ("test", "validation"):
        raise ConfigurationError(
            f"--evaluate-on is {request.evaluate_on!r}: give test or validation"
        )
    if request.evaluate_on == "validation" and not request.validation:
        raise ConfigurationError("--evaluate-on validation needs a --validation above 0")
    parse_settings(request.recipe, "--recipe")
    scoped(request.options, "--option", "", request.strategies)
    if parse_pairs(request.settings, "--setting") and GROWING not in request.strategies:
        raise ConfigurationError(
            f"--setting is for growth criteria, and none of {', '.join(request.strategies)} has "
            f"one: run {GROWING} too"
        )


def check_settings(cells: Iterable[Cell]) -> None:
    """Raise ConfigurationError for what a strategy or growth criterion does not take; loads torch.

    Of strategies that tell their options; what others take shows when they are built. Where no
    option is set nothing is loaded to check it: strategies load Avalanche, which takes seconds.
    """
    from firefly_cl.continual import STRATEGIES
    from firefly_cl.continual.learner import read_options
    from firefly_cl.continual.plan import plan_of
    from firefly_cl.growth.criterion import criterion_of

    for cell in cells:
        if cell.strategy == GROWING:
            plan = plan_of(cell.options)
            criterion_of(plan.criterion, plan.settings)
        elif cell.options and (kind := STRATEGIES.options(cell.strategy)) is not None:
            read_options(cell.options, kind)


def check_options(request: Request) -> None:
    """Raise ConfigurationError for an option for all that one strategy lacks; loads torch.

    What no strategy has is left to the reading of its options, which tells the nearest. Also for a
    budget that no strategy keeps to.
    """
    from firefly_cl.continual import STRATEGIES

    if request.budget is not None and not set(BUDGETED) & set(request.strategies):
        raise ConfigurationError(
            f"--budget is for {' and '.join(BUDGETED)}, and {', '.join(request.strategies)} cannot "
            "keep to one: leave --budget out"
        )
    for_all = {
        name: value
        for name, value in parse_pairs(request.options, "--option").items()
        if "." not in name
    }
    if not for_all:
        return
    kinds = {strategy: STRATEGIES.options(strategy) for strategy in request.strategies}
    known = {
        strategy: [each.name for each in fields(kind)]
        for strategy, kind in kinds.items()
        if kind is not None
    }
    for name, value in for_all.items():
        owners = [strategy for strategy, names in known.items() if _spelt(name) in names]
        for strategy, names in known.items():
            if strategy in owners or (names and not owners):
                continue
            lacks = f"has no option {name!r}" if names else "has no options"
            if not owners:
                raise ConfigurationError(f"{strategy} {lacks}: leave --option {name} out")
            instead = " ".join(f"--option {owner}.{name}={value}" for owner in owners)
            have = "has" if len(owners) == 1 else "have"
            it = "it" if names else repr(name)
            raise ConfigurationError(
                f"{strategy} {lacks}; {' and '.join(owners)} {have} {it}: write {instead}"
            )


def cells_of(request: Request) -> list[Cell]:
    """The cells asked for, seed by seed; raises ConfigurationError for bad settings."""
    return [
        _cell(request, strategy, seed) for seed in request.seeds for strategy in request.strategies
    ]


def _cell(request: Request, strategy: str, seed: int) -> Cell:
    preset = (request.preset or preset_of(request.scenario)).of(strategy)
    asked: dict[str, Any] = {
        name: getattr(request, name) for name in OF_RECIPE if getattr(request, name) is not None
    }
    settings = merged(preset.recipe, parse_settings(request.recipe, "--recipe"))
    recipe = recipe_from(merged(settings, asked))
    constant_width = preset.constant_width if request.width is None else None
    return Cell(
        scenario=request.scenario,
        strategy=strategy,
        seed=seed,
        backbone=request.backbone or preset.backbone,
        width=preset.width if request.width is None else request.width,
        constant_width=_first(request.constant_width, constant_width),
        budget=_first(request.budget, preset.budget),
        tasks=request.tasks,
        split_into=request.split_into,
        validation=request.validation,
        evaluate_on=request.evaluate_on,
        class_incremental=request.class_incremental,
        image_size=request.image_size,
        device=chosen_device(request.device),
        recipe=recipe_as_json(recipe),
        options=_options(request, preset, strategy),
    )


def _options(request: Request, preset: Preset, strategy: str) -> dict[str, str]:
    from firefly_cl.continual.plan import SETTINGS, Plan

    asked = scoped(request.options, "--option", strategy, request.strategies)
    options = {**preset.options, **asked}
    if strategy == GROWING:
        criterion = options.get("criterion", Plan.criterion)
        settings = scoped(request.settings, "--setting", criterion, (criterion,))
        options |= {f"{SETTINGS}{name}": value for name, value in settings.items()}
    return options


def scoped(pairs: Sequence[str], option: str, owner: str, owners: Sequence[str]) -> dict[str, str]:
    """Values for all of the owners, and over them those for this one (OWNER.name=value).

    Names come with underscores, however they were written: two spellings are one setting.
    """
    common, own = {}, {}
    for name, value in parse_pairs(pairs, option).items():
        before, dot, rest = name.partition(".")
        if not dot:
            common[_spelt(name)] = value
        elif before not in owners:
            raise ConfigurationError(
                f"{option} {name} is for {before!r}, which is not run: "
                f"write one of {', '.join(owners)} before the dot"
            )
        elif before == owner:
            own[_spelt(rest)] = value
    return {**common, **own}


def _spelt(name: str) -> str:
    return name.replace("-", "_")


def _first(asked: int | None, preset: int | None) -> int | None:
    return preset if asked is None else asked


def parse_names(text: str, option: str) -> tuple[str, ...]:
    """Comma-separated names, each once."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        listed = {"--seeds": "seeds", "--lam": "prices of a unit", "--keep": "shares"}
        what = listed.get(option, "names")
        raise ConfigurationError(f"{option} is empty: give one or more {what}, commas between")
    return names


def parse_seeds(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers from 0, each once."""
    seeds = []
    for part in parse_names(text, "--seeds"):
        if not part.isascii() or not part.isdigit():
            raise ConfigurationError(
                f"--seeds has {part!r}: give whole numbers from 0, for example 0,1,2"
            )
        seeds.append(int(part))
    return tuple(dict.fromkeys(seeds))


def check_data_dir(path: Path | None) -> None:
    """Raise ConfigurationError if a data path was given and nothing is there."""
    if path is not None and not path.exists():
        raise ConfigurationError(f"--data-dir {path} does not exist: name a folder or file of data")


def check_save_every(minutes: float) -> None:
    """Raise ConfigurationError for minutes that are negative or not finite."""
    if not (math.isfinite(minutes) and minutes >= 0):
        raise ConfigurationError(
            f"--save-every is {minutes:g}: give minutes, or 0 to keep finished tasks alone"
        )


def chosen_device(device: str) -> str:
    """What AUTO is on this machine; others as they are. Loads torch."""
    if device != AUTO:
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise ConfigurationError if torch cannot compute on `device`."""
    import torch

    if device == AUTO:
        return
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"--device {device} cannot be used ({reason}): try cpu") from None
