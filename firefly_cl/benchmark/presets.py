"""Named settings, each in a TOML file that says where they come from: network, recipe, options.

Those of `firefly_cl/presets/` are tuned, where they are, on validation images only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from firefly_cl.benchmark.configuration import merged
from firefly_cl.benchmark.tables import options_of, read_keys, read_tables, table_of
from firefly_cl.errors import ConfigurationError, FireflyError, UnknownName
from firefly_cl.registry import suggestion

FOLDER = Path(__file__).parent.parent / "presets"

_SETTINGS: Mapping[str, type] = {
    "backbone": str,
    "width": float,
    "constant-width": int,
    "budget": int,
    "epochs": int,
    "batch-size": int,
    "learning-rate": float,
    "recipe": dict,
    "options": dict,
}
_TOP: Mapping[str, type] = {
    "description": str,
    "source": str,
    "default": dict,
    "strategies": dict,
    **_SETTINGS,
}
OF_RECIPE = ("epochs", "batch_size", "learning_rate")
"""Fields of the recipe that are keys of their own as well."""


@dataclass(frozen=True)
class Preset:
    """What runs have unless told otherwise.

    `description` says in one line what it is for, `source` where its settings come from.
    `recipe` holds fields of `Recipe` that differ from its defaults (`augmentation` is a mapping
    of fields of `Augmentation`); `options` are strategy-specific; `strategies` holds the fields
    of this class that one strategy changes. Mappings of a strategy are merged over the common.
    `default`: the scenarios of which it is the default, by command (run, grow, prune).
    """

    name: str = "plain"
    description: str = ""
    source: str = ""
    backbone: str = "resnet9"
    width: float = 1.0
    constant_width: int | None = None
    budget: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    strategies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    default: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def of(self, strategy: str) -> Preset:
        """The preset of one strategy."""
        changes = dict(self.strategies.get(strategy, {}))
        for name in ("recipe", "options"):
            changes[name] = merged(getattr(self, name), changes.get(name, {}))
        return replace(self, **changes)

    def with_options(self, **options: str) -> Preset:
        """The preset with further options."""
        return replace(self, options={**self.options, **options})


def read_preset(path: Path) -> Preset:
    """The preset in a TOML file, named as the file is; loads no torch. Raises FireflyError."""
    told = read_tables(path, "a preset's")
    try:
        return _preset(told, path.stem)
    except FireflyError as error:
        raise type(error)(f"{path}: {error}") from None


def _preset(told: Mapping[str, Any], name: str) -> Preset:
    from firefly_cl.continual import STRATEGIES
    from firefly_cl.zoo import BACKBONES

    top = read_keys(told, "", _TOP)
    strategies = {}
    for strategy, table in top.pop("strategies", {}).items():
        STRATEGIES.describe(strategy)
        where = f"strategies.{strategy}"
        strategies[strategy] = _settings(read_keys(table_of(table, where), where, _SETTINGS))
    for each in (top, *strategies.values()):
        if "backbone" in each:
            BACKBONES.describe(each["backbone"])
    for key in ("description", "source"):
        top[key] = " ".join(top.get(key, "").split())
    return Preset(name, **_settings(top), strategies=strategies)


def _settings(read: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Preset` from the keys of a table."""
    found = {name: value for name, value in read.items() if name not in OF_RECIPE}
    recipe = {name: read[name] for name in OF_RECIPE if name in read}
    if recipe:
        found["recipe"] = {**found.get("recipe", {}), **recipe}
    if "options" in found:
        found["options"] = options_of(found["options"], "options")
    return found


NAMED: Mapping[str, Preset] = {
    path.stem: read_preset(path) for path in sorted(FOLDER.glob("*.toml"))
}
"""Those that ship, which `--preset` takes by name."""


def _defaults(command: str) -> dict[str, Preset]:
    return {
        scenario: preset
        for preset in NAMED.values()
        for scenario in preset.default.get(command, ())
    }


PRESETS: Mapping[str, Preset] = _defaults("run")
"""Defaults of `run`, by scenario."""

GROWTH: Mapping[str, Preset] = _defaults("grow")
"""Those of `grow`."""

PRUNING: Mapping[str, Preset] = _defaults("prune")
"""Those of `prune`."""


def named(name: str, beside: Path = Path()) -> Preset:
    """The preset of that name, or in the TOML file of that name; raises FireflyError.

    beside: the folder that a file's name is relative to.
    """
    if name.endswith(".toml"):
        found = read_preset(beside / name)
        if found.default:
            raise ConfigurationError(f"{beside / name}: only presets that ship have a default")
        return found
    if name not in NAMED:
        raise UnknownName(
            f"unknown preset {name!r}: {suggestion(name, NAMED)} (or name a file, NAME.toml)"
        )
    return NAMED[name]


def preset_of(scenario: str) -> Preset:
    """The default of a scenario; one without a preset gets the common defaults."""
    return PRESETS.get(scenario, Preset())
