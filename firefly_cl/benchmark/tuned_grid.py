"""A grid with the settings that a search has chosen, as TOML that says where they come from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path as FilePath
from typing import Any

from firefly_cl.benchmark.quantities import percent
from firefly_cl.benchmark.search import Search, as_option, by_table, short
from firefly_cl.benchmark.trials import Trial, best
from firefly_cl.search_space import Value

_INLINE = ("recipe", "options", "settings")

Path = tuple[str, ...]


def tuned_grid(
    told: Mapping[str, Any], out: str, results: Sequence[tuple[Search, Sequence[Trial]]], head: str
) -> str:
    """The grid `told`, with the best trial's settings of each search in a table of its own.

    told: what its file says. out: the folder of its runs, which are others than before. head: of
    several lines, how the search was done.
    """
    tables = deepcopy(dict(told))
    tables["out"] = out
    comments: dict[Path, list[str]] = {}
    for search, trials in results:
        of_scenario = tables["scenarios"][search.scenario]
        table = of_scenario.setdefault("strategies", {}).setdefault(search.strategy, {})
        chosen = best(trials)
        if chosen is not None:
            changed = {n: v for n, v in chosen.settings.items() if v != search.defaults[n]}
            _put(table, changed)
        where = ("scenarios", search.scenario, "strategies", search.strategy)
        comments[where] = _source(trials, chosen)
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    _write(tables, (), comments, lines)
    return "\n".join(lines) + "\n"


def moved(told: Mapping[str, Any], folder: FilePath, to: FilePath) -> dict[str, Any]:
    """What a grid in `folder` says, for one in `to`: preset files are named from there."""
    found: dict[str, Any] = {}
    for name, value in told.items():
        if name == "preset" and isinstance(value, str) and value.endswith(".toml"):
            value = FilePath(os.path.relpath(folder / value, to)).as_posix()
        elif isinstance(value, Mapping) and name not in _INLINE:
            value = moved(value, folder, to)
        found[name] = value
    return found


def _put(table: dict[str, Any], changed: Mapping[str, Value]) -> None:
    """Set what a trial changed in the table of a strategy, over what stands there."""
    recipe, options = by_table(changed)
    if "learning_rate" in recipe:  # where the grid has the key, it goes over the recipe's
        _set(table, "learning-rate", recipe.pop("learning_rate"))
    for name, values in (("recipe", recipe), ("options", options)):
        if values:
            inside = table.setdefault(name, {})
            for key, value in values.items():
                _set(inside, key, value)


def _set(table: dict[str, Any], key: str, value: Value) -> None:
    """Set a key, however it was spelt."""
    for old in [old for old in table if old.replace("-", "_") == key.replace("-", "_")]:
        del table[old]
    table[key] = value


def _source(trials: Sequence[Trial], chosen: Trial | None) -> list[str]:
    failed = sum(trial.score is None for trial in trials)
    of = f"{len(trials)} trials" + (f", {failed} failed" if failed else "")
    if chosen is None:
        return [f"All of {of}: these are the grid's own settings."]
    default = trials[0]
    own = "failed" if default.score is None else f"{percent(default.score)} %"
    settings = ", ".join(f"{short(name)} {shown(v)}" for name, v in chosen.settings.items())
    if chosen.number == 0:
        return [f"The grid's own settings were the best of {of}: {own}.", settings]
    score = percent(chosen.score)
    return [f"Trial {chosen.number} of {of}: {score} %; the grid's own settings: {own}.", settings]


def shown(value: Value) -> str:
    """A value as people read it."""
    return f"{value:g}" if isinstance(value, float) else as_option(value)


def _write(
    table: Mapping[str, Any], path: Path, comments: Mapping[Path, Sequence[str]], lines: list[str]
) -> None:
    """A table's own values, and then its tables, each under a heading."""
    inside = {}
    for name, value in table.items():
        if isinstance(value, dict) and name not in _INLINE:
            inside[name] = value
        else:
            lines.append(f"{_key(name)} = {_value(value)}")
    for name, value in inside.items():
        deeper = (*path, name)
        if not value or deeper in comments or any(not _heading(n, v) for n, v in value.items()):
            lines.append("")
            lines.extend(f"# {line}" for line in comments.get(deeper, ()))
            lines.append(f"[{'.'.join(map(_key, deeper))}]")
        _write(value, deeper, comments, lines)


def _heading(name: str, value: object) -> bool:
    return isinstance(value, dict) and name not in _INLINE


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float):
        return repr(value)  # of inf and nan too
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
