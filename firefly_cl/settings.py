"""Fields of a dataclass read from text or given as values, with errors that say what was meant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from firefly_cl.errors import ConfigurationError
from firefly_cl.registry import suggestion

T = TypeVar("T")

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
WANTED = {int: "a whole number", bool: "true or false", float: "a number"}


def read_settings(given: Mapping[str, object], kind: type[T], what: str) -> T:
    """The dataclass `kind` with `given` values over its defaults, each of the default's type.

    what: one of them is called so in errors. Text is read as that type. Raises
    ConfigurationError for a name that is not a field and a value of another type.
    """
    fields = {}
    if dataclasses.is_dataclass(kind):
        fields = {field.name: field.default for field in dataclasses.fields(kind)}
    values = {}
    for name, value in given.items():
        key = name.replace("-", "_")
        if key not in fields:
            raise ConfigurationError(f"unknown {what} {name!r}: {suggestion(key, fields)}")
        wanted = type(fields[key])
        try:
            values[key] = _read(value, wanted)
        except (ValueError, KeyError):
            raise ConfigurationError(
                f"{what} {name} is {value!r}; it must be {WANTED.get(wanted, 'text')}"
            ) from None
    return kind(**values)


def _read(value: object, wanted: type) -> Any:
    """A value of one type; raises ValueError or KeyError where it is none."""
    if isinstance(value, str):
        read: Any = TRUTH[value.lower()] if wanted is bool else wanted(value)
    elif isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool):
        read = value
    elif wanted is float and isinstance(value, int) and not isinstance(value, bool):
        read = float(value)
    else:
        raise ValueError
    if isinstance(read, float) and not math.isfinite(read):
        raise ValueError
    return read
