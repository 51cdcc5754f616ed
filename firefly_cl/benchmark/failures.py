"""Failures: the file beside a record that says what ended a cell of a grid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from firefly_cl.benchmark.folders import ERROR_NAME
from firefly_cl.benchmark.lock import held
from firefly_cl.benchmark.records import plain, write_atomic

SCHEMA = 1


@dataclass(frozen=True)
class Failure:
    """What ended a cell: one line, and the traceback or what its process said last.

    kind: the class of the error; empty where the process died.
    """

    configuration: Mapping[str, Any]
    error: str
    traceback: str
    versions: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
    schema: int = SCHEMA


def write_failure(folder: Path, failure: Failure) -> None:
    """Write it, atomically; raises FileError, also where another process has taken the folder."""
    text = json.dumps(plain(asdict(failure)), indent=1)
    with held(folder):
        write_atomic(folder / ERROR_NAME, f"{text}\n".encode())


def read_failure(folder: Path) -> Failure | None:
    """The failure kept in a run folder; None where there is none that can be read."""
    try:
        told = json.loads((folder / ERROR_NAME).read_bytes())
        return Failure(
            configuration=dict(told["configuration"]),
            error=str(told["error"]),
            traceback=str(told["traceback"]),
            versions=dict(told["versions"]),
            kind=str(told.get("kind", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
