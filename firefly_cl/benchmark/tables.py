"""Tables of TOML files that people write: read by known keys, with one-line errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from firefly_cl.errors import ConfigurationError, FileError
from firefly_cl.registry import suggestion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_WANTED = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "a table",
    list: "a list",
}

Instead = Callable[[str, Mapping[str, type]], str]
"""What to write instead of an unknown key, of the known ones."""


def read_tables(path: Path, what: str) -> dict[str, Any]:
    """What a TOML file says, as it stands there; raises FireflyError.

    what: such as "a grid's", whose file it should be.
    """
    try:
        told: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path} ({error.strerror}): name {what} TOML file") from None
    except UnicodeDecodeError:
        raise FileError(f"{path} is not UTF-8 text: name {what} TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    return told


def table_of(told: Any, where: str) -> Mapping[str, Any]:
    """What stands under a name, which has to be a table; raises ConfigurationError."""
    if not isinstance(told, dict):
        raise ConfigurationError(f"{where} is {told!r}: make it a table, [{where}]")
    return told


def read_keys(
    table: Mapping[str, Any],
    where: str,
    known: Mapping[str, type],
    instead: Instead = suggestion,
) -> dict[str, Any]:
    """The values of a table, each of the kind of its key, under names with underscores.

    where: the table's name, empty for the top. Raises ConfigurationError.
    """
    found: dict[str, Any] = {}
    inside = f" in [{where}]" if where else ""
    for name, value in table.items():
        key = name.replace("_", "-")
        if key not in known:
            raise ConfigurationError(f"unknown key {name!r}{inside}: {instead(key, known)}")
        kind = known[key]
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigurationError(f"{name}{inside} is {value!r}: give {_WANTED[kind]}")
        if key.replace("-", "_") in found:
            raise ConfigurationError(f"{name}{inside} is given twice: remove one")
        found[key.replace("-", "_")] = value
    return found


def options_of(table: Mapping[str, Any], what: str) -> dict[str, str]:
    """Values as the command line takes them, under names with underscores.

    A list becomes values with commas between.

    what: the table's name. Raises ConfigurationError.
    """
    found: dict[str, str] = {}
    for name, value in table.items():
        if "." in name or isinstance(value, dict):
            raise ConfigurationError(
                f"{what} has a table {name.partition('.')[0]!r}: give plain values"
            )
        values = value if isinstance(value, list) else [value]
        text = ",".join(_text(f"{what} {name}", item) for item in values)
        found[name.replace("-", "_")] = text  # of two spellings the one put in last, by `merged`
    return found


def _text(name: str, value: Any) -> str:
    return value if isinstance(value, str) else as_json(name, value)


def as_json(name: str, value: Any) -> str:
    """A value as JSON; raises ConfigurationError for one that JSON does not have."""
    try:
        return json.dumps(value)
    except TypeError:
        raise ConfigurationError(f"{name} is {value}: give a number, a text or a list") from None
