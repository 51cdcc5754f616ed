"""A search: which settings of one strategy on one scenario are tried, and by which cells."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from firefly_cl.benchmark.configuration import Cell, merged
from firefly_cl.benchmark.grid import Grid
from firefly_cl.benchmark.plan import check
from firefly_cl.errors import ConfigurationError
from firefly_cl.registry import suggestion
from firefly_cl.search_space import Domain, Range, Value, space_of
from firefly_cl.settings import read_settings

RECIPE: Mapping[str, Mapping[str, Domain]] = {
    "sgd": {
        "learning_rate": Range(0.01, 0.5, log=True),
        "weight_decay": Range(1e-5, 1e-2, log=True),
    },
    "adamw": {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "weight_decay": Range(1e-4, 0.5, log=True),
    },
}
"""What is searched of the recipe, for every strategy, by optimizer."""

_RECIPE, _OPTIONS = "recipe.", "options."


@dataclass(frozen=True)
class Search:
    """The search of one strategy of a grid on one of its scenarios, under the grid's names.

    cells: of trial 0, the grid's own settings; one for each seed. space: by dotted name, of
    recipe.X and options.X. folder: of the trials. sampler_seed: what the draws depend on.
    """

    scenario: str
    strategy: str
    cells: Sequence[Cell]
    space: Mapping[str, Domain]
    defaults: Mapping[str, Value]
    folder: Path
    sampler_seed: int = 0

    def cells_with(self, settings: Mapping[str, Value]) -> list[Cell]:
        """The cells of a trial, one for each seed; what is the grid's own is not written out."""
        changes = {name: v for name, v in settings.items() if v != self.defaults[name]}
        recipe = _under(_RECIPE, changes)
        options = {name: as_option(value) for name, value in _under(_OPTIONS, changes).items()}
        return [
            replace(cell, recipe=merged(cell.recipe, recipe), options={**cell.options, **options})
            for cell in self.cells
        ]

    def path(self, number: int) -> Path:
        """Where a trial is recorded."""
        return self.folder / f"trial-{number:03d}.json"

    def run_folder(self, number: int, seed: int) -> Path:
        """Where a cell of a trial is kept until the trial is recorded."""
        return self.folder / f"trial-{number:03d}" / f"seed{seed}"

    def identity(self) -> dict[str, Any]:
        """All that its trials depend on, as plain JSON; the same search has the same."""
        first = self.cells[0].as_json()
        del first["seed"]
        told = {
            "configuration": first,
            "seeds": [cell.seed for cell in self.cells],
            "sampler_seed": self.sampler_seed,
            "space": {name: asdict(domain) for name, domain in self.space.items()},
        }
        plain: dict[str, Any] = json.loads(json.dumps(told))
        return plain


def searches_of(
    grid: Grid,
    *,
    seeds: Sequence[int],
    tasks: int,
    keep: Collection[str] = (),
    sampler_seed: int = 0,
    out: Path,
) -> list[Search]:
    """A search for every strategy on every scenario of a grid: first tasks, validation images.

    keep: names of settings that are not searched. Loads torch. Raises ConfigurationError.
    """
    entries = []
    for entry in grid.entries:
        asked = entry.request
        if asked.tasks is not None and asked.tasks < tasks:
            raise ConfigurationError(
                f"--tasks is {tasks}, and the grid streams {asked.tasks} of {entry.scenario!r}: "
                f"give {asked.tasks} or fewer"
            )
        asked = replace(asked, seeds=seeds, tasks=tasks)
        asked = replace(asked, evaluate_on="validation", class_incremental=False)
        check(asked)
        entries.append(replace(entry, request=asked))
    cells: dict[tuple[str, str], list[Cell]] = {}
    for found in replace(grid, entries=entries).cells():
        cells.setdefault((found.scenario, found.strategy), []).append(found.cell)
    known: dict[str, None] = {}
    searches = []
    for (scenario, strategy), of_seeds in cells.items():
        space = _space(of_seeds[0])
        known.update(dict.fromkeys(map(short, space)))
        space = {name: domain for name, domain in space.items() if short(name) not in keep}
        if not space:
            raise ConfigurationError(
                f"nothing is left to search for {strategy!r} on {scenario!r}: take it out of the "
                "grid, or --keep fewer settings"
            )
        folder = out / _folder_name(scenario) / _folder_name(strategy)
        defaults = _defaults(of_seeds[0], space)
        searches.append(Search(scenario, strategy, of_seeds, space, defaults, folder, sampler_seed))
    for name in keep:
        if name not in known:
            raise ConfigurationError(
                f"--keep has {name!r}, which no strategy here searches: {suggestion(name, known)}"
            )
    return searches


def _space(cell: Cell) -> dict[str, Domain]:
    from firefly_cl.continual import STRATEGIES

    options = space_of(STRATEGIES.options(cell.strategy))
    return {
        **{f"{_RECIPE}{name}": domain for name, domain in RECIPE[cell.recipe["optimizer"]].items()},
        **{f"{_OPTIONS}{name}": domain for name, domain in options.items()},
    }


def _defaults(cell: Cell, space: Mapping[str, Domain]) -> dict[str, Value]:
    """The values that a cell has of what is searched."""
    from firefly_cl.continual import STRATEGIES

    kind = STRATEGIES.options(cell.strategy)
    options: object = None
    if kind is not None:
        own = {each.name for each in fields(kind)}
        given = {name: value for name, value in cell.options.items() if name in own}
        options = read_settings(given, kind, "strategy option")
    found: dict[str, Value] = {}
    for name in space:
        of_recipe = name.startswith(_RECIPE)
        found[name] = cell.recipe[short(name)] if of_recipe else getattr(options, short(name))
    return found


def short(name: str) -> str:
    """The name of a setting without what it is a setting of."""
    return name.removeprefix(_RECIPE).removeprefix(_OPTIONS)


def by_table(settings: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Those of the recipe, and those of the strategy, under their short names."""
    return _under(_RECIPE, settings), _under(_OPTIONS, settings)


def _under(prefix: str, settings: Mapping[str, Value]) -> dict[str, Value]:
    return {short(name): value for name, value in settings.items() if name.startswith(prefix)}


def as_option(value: Value) -> str:
    """A value as the text that `--option` takes."""
    return value if isinstance(value, str) else json.dumps(value)


def _folder_name(name: str) -> str:
    if name in ("", ".", "..") or any(sign in name for sign in "/\\:\0"):
        raise ConfigurationError(f"the grid's name {name!r} cannot name a folder: change it")
    return name
