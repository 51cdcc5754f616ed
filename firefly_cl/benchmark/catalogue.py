"""What there is to run, by name, read without importing torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from firefly_cl.benchmark.configuration import flat
from firefly_cl.benchmark.presets import NAMED, Preset
from firefly_cl.benchmark.rounds import DATASETS
from firefly_cl.errors import UnknownName
from firefly_cl.registry import Registry, suggestion

PRESET_KIND = "presets"


def catalogue(kind: str | None = None) -> dict[str, dict[str, str]]:
    """Names and one-line descriptions of every kind of thing that commands take, or of one kind.

    Raises UnknownName for a kind that there is not.
    """
    from firefly_cl.continual import STRATEGIES
    from firefly_cl.growth import CRITERIA
    from firefly_cl.scenarios import SCENARIOS
    from firefly_cl.zoo import BACKBONES

    kinds: dict[str, Registry] = {
        "scenarios": SCENARIOS,
        "strategies": STRATEGIES,
        "criteria": CRITERIA,
        "backbones": BACKBONES,
    }
    if kind is not None and kind not in (*kinds, PRESET_KIND):
        known = (*kinds, PRESET_KIND)
        raise UnknownName(f"there is no list of {kind!r}: {suggestion(kind, known)}")
    found = {
        each: {name: registry.describe(name) for name in registry.names()}
        for each, registry in kinds.items()
    }
    found[PRESET_KIND] = {name: preset.description for name, preset in NAMED.items()}
    return found if kind is None else {kind: found[kind]}


def preset_settings() -> dict[str, dict[str, Any]]:
    """Of each preset where it comes from, what it is the default of, and what it sets.

    What it sets: network, recipe, options, and those of single strategies under their names.
    """
    found = {}
    for name, preset in NAMED.items():
        parts = {"source": preset.source, "default": preset.default, **_parts(preset)}
        found[name] = {part: told for part, told in parts.items() if told}
    return found


def _parts(preset: Preset) -> dict[str, dict[str, Any]]:
    width: dict[str, Any] = {"width": preset.width}
    if preset.constant_width is not None:
        width = {"constant_width": preset.constant_width}
    budget = {} if preset.budget is None else {"budget": preset.budget}
    return {
        "network": {"backbone": preset.backbone, **width, **budget},
        "recipe": flat(preset.recipe),
        "options": dict(preset.options),
        **{strategy: flat(_own(changes)) for strategy, changes in preset.strategies.items()},
    }


def _own(changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset changes for one strategy, its options under their own names."""
    rest = {name: value for name, value in changes.items() if name != "options"}
    return {**rest, **changes.get("options", {})}


def print_catalogue(found: Mapping[str, Mapping[str, str]], console: Console) -> None:
    """Print the names of each kind with their descriptions."""
    widest = max((len(name) for names in found.values() for name in names), default=0)
    for kind, names in found.items():
        table = _table(kind, widest)
        for name, description in names.items():
            table.add_row(name, description)
        console.print(table)


def print_presets(console: Console) -> None:
    """Print the presets with where each comes from, its default use, and what it sets."""
    table = _table(PRESET_KIND, max(map(len, NAMED)))
    for name, settings in preset_settings().items():
        table.add_row(name, NAMED[name].description)
        for part, values in settings.items():
            if part == "source":
                table.add_row("", Text(values, style="dim"))
                continue
            pairs = [
                _as_typed(key, value) if part == "default" else f"{key}={value}"
                for key, value in values.items()
            ]
            table.add_row("", Text.assemble((f"{part}: ", "dim"), " ".join(pairs)))
    console.print(table)


def _as_typed(command: str, scenarios: Sequence[str]) -> str:
    """A command with what it is the default for; `grow` and `prune` have names of datasets."""
    if command == "run":
        return f"run {', '.join(scenarios)}"
    data = [name for name, scenario in DATASETS.items() if scenario in scenarios]
    return f"{command} --data {', '.join(data)}"


def _table(title: str, widest: int) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    table.title_style = "bold"
    table.add_column(min_width=widest, no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    return table
