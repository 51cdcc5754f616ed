"""What is wrong with the content of a record: everything that reports and runs read of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Kinds = Mapping[str, "type | tuple[type, ...]"]

_KINDS: Kinds = {
    "configuration": dict,
    "versions": dict,
    "hardware": dict,
    "data": dict,
    "seed": int,
    "tasks": list,
    "finished": bool,
    "accuracy": list,
    "validation_accuracy": list,
    "average_accuracy": (float, int, type(None)),
    "average_forgetting": (float, int, type(None)),
    "parameters": int,
    "bytes": int,
    "flops": list,
    "parameters_by_task": list,
    "bytes_by_task": list,
    "seconds": dict,
    "growth_events": list,
    "widths": dict,
    "reuse": list,
    "class_incremental": dict,
    "latency": dict,
}

_SETTINGS: Kinds = {
    "scenario": str,
    "strategy": str,
    "backbone": str,
    "recipe": dict,
    "options": dict,
}

_BEFORE = ("parameters_before", "flops_before")
"""Numbers of each growth step and pruning; `_MEASURED` are null where they cannot be had."""

_MEASURED = ("predicted_decrease", "obtained_decrease", "validation_loss", "validation_accuracy")


def damage(content: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with a record's content, in a few words; None if none is.

    What the fields mean is said at `Record`.
    """
    return next(_damages(content), None)


def _damages(content: Mapping[str, Any]) -> Iterator[str]:
    """What comes later counts on what comes before."""
    yield from _unlike(content, _KINDS, "")
    yield from _unlike(content["configuration"], _SETTINGS, "configuration ")
    yield from _unlike(content["hardware"], {"threads": int}, "hardware ")
    tasks = len(content["tasks"])
    if not tasks or not all(isinstance(name, str) for name in content["tasks"]):
        yield "'tasks' is not a list of names"
    for name in ("accuracy", "validation_accuracy"):
        yield from _matrix(content[name], name, tasks, whole=content["finished"])
    for name in ("parameters_by_task", "bytes_by_task"):
        yield from _numbers(content[name], name)
        if len(content[name]) != len(content["accuracy"]):
            yield f"{name!r} has {len(content[name])} values for {len(content['accuracy'])} tasks"
    yield from _numbers(content["flops"], "flops")
    if content["finished"] and not content["flops"]:
        yield "'flops' is empty"
    if content["finished"] and content["average_accuracy"] is None:
        yield "'average_accuracy' is missing"
    yield from _numbers(content["seconds"].values(), "seconds")
    for name in ("widths", "reuse"):
        lists = content[name].values() if name == "widths" else content[name]
        for units in lists:
            if not isinstance(units, list):
                yield f"{name!r} has {units!r} in place of a list"
            yield from _numbers(units, name)
    yield from _events(content["growth_events"])
    yield from _class_incremental(content["class_incremental"], tasks, content["finished"])
    yield from _latency(content["latency"])


def _unlike(found: Mapping[str, Any], kinds: Kinds, where: str) -> Iterator[str]:
    for name, kind in kinds.items():
        if name not in found:
            yield f"no {where}{name!r}"
        elif not isinstance(found[name], kind):
            yield f"{where}{name!r} is a {type(found[name]).__name__}"


def _matrix(rows: Any, name: str, tasks: int, *, whole: bool) -> Iterator[str]:
    if not isinstance(rows, list) or len(rows) > tasks or (whole and len(rows) < tasks):
        yield f"{name!r} does not have a row for each of {tasks} tasks"
    for row in rows:
        if not isinstance(row, list) or len(row) != tasks:
            yield f"{name!r} has a row that is not of {tasks} tasks"
        yield from _numbers((value for value in row if value is not None), name)


def _events(events: Iterable[Any]) -> Iterator[str]:
    for event in events:
        if not isinstance(event, dict):
            yield f"'growth_events' has {event!r} in place of an event"
        if "predicted_decrease" in event or "removed" in event:
            yield from _unlike(event, dict.fromkeys(_BEFORE, (int, float)), "growth_events ")
        told = [event[name] for name in _MEASURED if event.get(name) is not None]
        yield from _numbers(told, "growth_events")


def _class_incremental(found: Mapping[str, Any], tasks: int, finished: bool) -> Iterator[str]:
    if found:
        yield from _unlike(found, {"rule": str, "accuracy": list}, "class_incremental ")
        yield from _matrix(found["accuracy"], "class_incremental", tasks, whole=finished)


def _latency(found: Mapping[str, Any]) -> Iterator[str]:
    if found:
        kinds: Kinds = {"milliseconds": dict, "processor_share": (int, float)}
        yield from _unlike(found, kinds, "latency ")
        for values in found["milliseconds"].values():
            if not isinstance(values, list):
                yield "'latency' has milliseconds that are not a list"
            yield from _numbers(values, "latency")


def _numbers(values: Iterable[Any], name: str) -> Iterator[str]:
    for value in values:
        if not _is_number(value):
            yield f"{name!r} has {value!r} in place of a number"


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))
