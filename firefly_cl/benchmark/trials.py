"""Trials: one small JSON file for each that a search has made, with its settings and score."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from firefly_cl.benchmark.records import plain, write_atomic
from firefly_cl.errors import FileError
from firefly_cl.search_space import Value

SCHEMA = 1


@dataclass(frozen=True)
class Trial:
    """One trial: `scores` are average accuracies on validation images by seed, `score` their mean.

    settings: the values of what is searched, by dotted name. score: None where the settings
    failed, for the reason `error`. seconds: of training and evaluation, over all seeds. data: what
    images it was run on, by seed, as in records; empty where a run left none. search: what it is a
    trial of, see `Search.identity`.
    """

    number: int
    settings: Mapping[str, Value]
    score: float | None
    scores: Sequence[float | None]
    error: str | None
    seconds: float
    versions: Mapping[str, Any]
    hardware: Mapping[str, Any]
    data: Sequence[Mapping[str, Any]]
    search: Mapping[str, Any]
    schema: int = SCHEMA


def write_trial(trial: Trial, path: Path) -> None:
    """Write it, atomically; raises FileError."""
    text = json.dumps(plain(asdict(trial)), indent=1, allow_nan=False)
    write_atomic(path, f"{text}\n".encode())


def read_trial(path: Path) -> Trial | None:
    """The trial in a file; None where there is none, or only a part of one.

    Raises FileError where it cannot be read, and for a newer schema.
    """
    try:
        told = json.loads(path.read_bytes())
        schema, settings = told["schema"], dict(told["settings"])
        found = Trial(**{each.name: told[each.name] for each in fields(Trial)})
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileError(
            f"cannot read {path} ({error.strerror}): check the path and its permissions"
        ) from None
    except (ValueError, KeyError, TypeError):  # JSON and UTF-8 errors are ValueErrors
        return None
    if not isinstance(schema, int) or schema > SCHEMA:
        raise FileError(
            f"{path} has schema {schema}, newer than {SCHEMA}: read it with a newer firefly_cl"
        )
    good = found.score is None or isinstance(found.score, (int, float))
    good = good and isinstance(found.number, int) and isinstance(found.search, dict)
    good = good and isinstance(found.data, list) and all(isinstance(d, dict) for d in found.data)
    good = good and all(isinstance(value, (str, int, float)) for value in settings.values())
    return found if good else None


def best(trials: Sequence[Trial]) -> Trial | None:
    """The trial of the highest score, the first of equal ones; None where all failed."""
    scored = [trial for trial in trials if trial.score is not None]
    return max(scored, key=lambda trial: trial.score or 0.0, default=None)
