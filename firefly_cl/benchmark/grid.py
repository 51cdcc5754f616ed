"""A grid: the cells (scenario x strategy x seed) that one TOML file asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firefly_cl.benchmark.configuration import Cell, flat, merged
from firefly_cl.benchmark.labels import row_digest
from firefly_cl.benchmark.plan import GROWING, Request, cells_of, check, check_settings
from firefly_cl.benchmark.presets import OF_RECIPE, named
from firefly_cl.benchmark.tables import as_json, options_of, read_keys, read_tables, table_of
from firefly_cl.errors import ConfigurationError
from firefly_cl.registry import suggestion

TRAINING: Mapping[str, type] = {
    "preset": str,
    "epochs": int,
    "batch-size": int,
    "learning-rate": float,
    "backbone": str,
    "width": float,
    "constant-width": int,
    "budget": int,
    "device": str,
    "recipe": dict,
}
"""Settings that any table may hold; a nearer table goes over a more common one."""

OF_SCENARIO: Mapping[str, type] = {
    "tasks": int,
    "split-into": int,
    "validation": float,
    "evaluate-on": str,
    "class-incremental": bool,
    "image-size": int,
}
"""Settings that strategies which are compared must share."""

OF_STRATEGY: Mapping[str, type] = {"options": dict, "settings": dict}
"""Settings that have a meaning for one strategy only."""

_TOP = {"out": str, "seeds": list, "scenarios": dict, "strategies": dict}


@dataclass(frozen=True)
class Entry:
    """One scenario with one strategy, as named in the file, for all seeds."""

    scenario: str
    strategy: str
    request: Request


@dataclass(frozen=True)
class GridCell:
    """A cell, and what the file calls its scenario and its strategy."""

    scenario: str
    strategy: str
    cell: Cell


@dataclass(frozen=True)
class Grid:
    """What a file asks for; `out` is None where it does not say."""

    path: Path
    entries: Sequence[Entry]
    out: Path | None = None

    def cells(self) -> list[GridCell]:
        """Every cell: scenario by scenario, seed by seed, in the order of the strategies.

        Loads torch. Raises ConfigurationError for bad settings, and where two cells are one.
        """
        found: dict[str, GridCell] = {}
        for scenario in dict.fromkeys(entry.scenario for entry in self.entries):
            entries = [entry for entry in self.entries if entry.scenario == scenario]
            by_strategy = []
            for entry in entries:
                try:
                    cells = cells_of(entry.request)
                    check_settings(cells)
                    by_strategy.append(cells)
                except ConfigurationError as error:
                    raise _at(self.path, entry.scenario, entry.strategy, error) from error
            for of_seed in zip(*by_strategy, strict=True):
                for entry, cell in zip(entries, of_seed, strict=True):
                    new = GridCell(entry.scenario, entry.strategy, cell)
                    old = found.setdefault(cell.digest(), new)
                    if old is not new:
                        raise ConfigurationError(
                            f"{self.path}: {old.strategy!r} on {old.scenario!r} and "
                            f"{new.strategy!r} on {new.scenario!r} are one cell "
                            f"({cell.digest()}): change a setting or remove one"
                        )
        return list(found.values())


def grid_rows(cells: Sequence[GridCell]) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a report that a grid names: what each is called, and a configuration of it."""
    found = {row_digest(told := each.cell.as_json()): (each.strategy, told) for each in cells}
    return list(found.values())


def read_grid(path: Path) -> Grid:
    """The grid in a TOML file; loads no torch.

    Raises FileError where it cannot be read, ConfigurationError for what it cannot mean.
    """
    told = read_tables(path, "a grid's")
    try:
        return _grid(told, path)
    except ConfigurationError as error:
        text = str(error)
        raise type(error)(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _grid(told: Mapping[str, Any], path: Path) -> Grid:
    top = _read(told, "", {**_TOP, **TRAINING, **OF_SCENARIO})
    scenarios = _tables(top.pop("scenarios", {}), "scenarios")
    strategies = _tables(top.pop("strategies", {}), "strategies")
    seeds, out = _seeds(top.pop("seeds", [0])), top.pop("out", None)
    of_strategies = {
        name: _read(table, f"strategies.{name}", {"strategy": str, **TRAINING, **OF_STRATEGY})
        for name, table in strategies.items()
    }
    entries = []
    for scenario, table in scenarios.items():
        where = f"scenarios.{scenario}"
        known = {"scenario": str, "strategies": dict, **TRAINING, **OF_SCENARIO}
        of_scenario = _read(table, where, known)
        overrides = of_scenario.pop("strategies", {})
        for name in overrides:
            if name not in strategies:
                raise ConfigurationError(
                    f"[{where}.strategies.{name}] is about a strategy that is not in [strategies]: "
                    + suggestion(name, strategies)
                )
        common = _over(top, of_scenario)
        for strategy, settings in of_strategies.items():
            asked = _over(common, settings)
            if strategy in overrides:
                inside = f"{where}.strategies.{strategy}"
                nearest = table_of(overrides[strategy], inside)
                asked = _over(asked, _read(nearest, inside, {**TRAINING, **OF_STRATEGY}))
            try:
                entries.append(
                    Entry(
                        scenario, strategy, _request(scenario, strategy, asked, seeds, path.parent)
                    )
                )
            except ConfigurationError as error:
                raise _at(path, scenario, strategy, error) from error
    return Grid(path, entries, Path(out) if out is not None else None)


def _over(common: Mapping[str, Any], nearer: Mapping[str, Any]) -> dict[str, Any]:
    """A table with a nearer one over it, also where they say the same in two ways."""
    twins = [(name, name in nearer.get("recipe", {})) for name in OF_RECIPE]
    twins += [("width", "constant_width" in nearer), ("constant_width", "width" in nearer)]
    overruled = {name for name, other_way in twins if other_way}
    return merged({name: v for name, v in common.items() if name not in overruled}, nearer)


def _request(
    scenario: str, strategy: str, asked: Mapping[str, Any], seeds: Sequence[int], beside: Path
) -> Request:
    settings = dict(asked)
    strategy = settings.pop("strategy", strategy)
    recipe = flat(settings.pop("recipe", {}))
    preset = settings.pop("preset", None)
    request = Request(
        scenario=settings.pop("scenario", scenario),
        strategies=(strategy,),
        seeds=seeds,
        recipe=[f"{name}={as_json(name, value)}" for name, value in recipe.items()],
        options=_pairs(settings.pop("options", {}), "options"),
        settings=_pairs(settings.pop("settings", {}), "settings"),
        preset=None if preset is None else named(preset, beside),
        **settings,
    )
    if request.settings and strategy != GROWING:
        raise ConfigurationError(f"settings are those of a growth criterion: {strategy} has none")
    check(request)
    return request


def _tables(told: Mapping[str, Any], kind: str) -> dict[str, Mapping[str, Any]]:
    if not told:
        raise ConfigurationError(
            f"the grid is empty: name its {kind} in tables, such as "
            f"[{kind}.{'split-digits' if kind == 'scenarios' else 'naive'}]"
        )
    return {name: table_of(table, f"{kind}.{name}") for name, table in told.items()}


def _read(table: Mapping[str, Any], where: str, known: Mapping[str, type]) -> dict[str, Any]:
    return read_keys(table, where, known, _instead)


def _instead(key: str, known: Mapping[str, type]) -> str:
    """Where a key that stands in the wrong place belongs, else the nearest key."""
    if key in OF_STRATEGY:
        return "it belongs in [strategies.NAME]"
    if key in OF_SCENARIO:
        return "it belongs in [scenarios.NAME] or at the top"
    if key in _TOP:
        return "it belongs at the top, before the first table"
    return suggestion(key, known)


def _seeds(told: Sequence[Any]) -> tuple[int, ...]:
    for seed in told:
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise ConfigurationError(f"seeds has {seed!r}: give whole numbers from 0, as in [0, 1]")
        if told.count(seed) > 1:
            raise ConfigurationError(f"seeds has {seed} twice: give each once")
    if not told:
        raise ConfigurationError("the grid is empty: give one or more seeds, as in seeds = [0, 1]")
    return tuple(told)


def _pairs(options: Mapping[str, Any], what: str) -> list[str]:
    return [f"{name}={value}" for name, value in options_of(options, what).items()]


def _at(path: Path, scenario: str, strategy: str, error: ConfigurationError) -> ConfigurationError:
    return type(error)(f"{path}, {strategy!r} on {scenario!r}: {error}")
