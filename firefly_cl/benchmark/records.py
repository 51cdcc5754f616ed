"""Records: the one JSON file that says what a cell did, and every number a report draws."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from firefly_cl.benchmark.record_damage import damage
from firefly_cl.errors import FileError

SCHEMA = 1
FILE_NAME = "record.json"

Matrix = Sequence[Sequence["float | None"]]


@dataclass(frozen=True)
class Record:
    """One cell's record; `accuracy[i][j]` is the test accuracy of task j after task i, a fraction.

    Rows exist for the tasks streamed so far; entries are None for j > i, and for tasks that a
    learner cannot answer yet (joint training waits for the last). `parameters` counts
    floats, `bytes` everything a method keeps, `flops` one image through each task's function.
    `parameters_by_task` and `bytes_by_task` are the sizes when each task ended. `reuse[t][o]` is
    how many units of owner o task t reads; older records, and learners that share none, have none.
    `class_incremental` holds the `rule` of `class_incremental.evaluate` and the `accuracy` by it,
    as above, where asked for. `latency` is what `latency.measure` found after the last task; older
    records have none.
    """

    configuration: Mapping[str, Any]
    versions: Mapping[str, Any]
    hardware: Mapping[str, Any]
    data: Mapping[str, Any]
    seed: int
    tasks: Sequence[str]
    finished: bool
    accuracy: Matrix
    validation_accuracy: Matrix
    average_accuracy: float | None
    average_forgetting: float | None
    parameters: int
    bytes: int
    flops: Sequence[int]
    parameters_by_task: Sequence[int]
    bytes_by_task: Sequence[int]
    seconds: Mapping[str, float]
    growth_events: Sequence[Mapping[str, Any]]
    widths: Mapping[str, Sequence[int]]
    reuse: Sequence[Sequence[int]] = ()
    class_incremental: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def average_accuracy(accuracy: Matrix) -> float | None:
    """Mean accuracy over the tasks known after the last one; None if there is none."""
    row = _known(accuracy[-1]) if accuracy else {}
    return math.fsum(row.values()) / len(row) if row else None


def average_forgetting(accuracy: Matrix) -> float | None:
    """Mean over earlier tasks of their best accuracy before the last task minus that after it.

    Chaudhry et al. 2018, eq. 3: f_j = max_{i < T-1} a_ij - a_{T-1,j}, mean over j < T-1. It is 0
    for one task, and None for a learner that answered nothing before the last task.
    """
    if not accuracy:
        return None
    *before, last = [_known(row) for row in accuracy]
    if not before:
        return 0.0
    drops = [
        max(row[j] for row in before if j in row) - value
        for j, value in last.items()
        if any(j in row for row in before)
    ]
    return math.fsum(drops) / len(drops) if drops else None


def _known(row: Sequence[float | None]) -> dict[int, float]:
    return {j: float(value) for j, value in enumerate(row) if value is not None}


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one, never a part.

    Raises FileError if the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise FileError(
            f"cannot write {path} ({error.strerror or error}): free space or choose another folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # other systems cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_record(record: Record, path: Path) -> None:
    """Write `record` as JSON, atomically; numbers that are not finite become null."""
    write_atomic(path, record_bytes(record))


def record_bytes(record: Record) -> bytes:
    """`record` as the JSON that `write_record` writes."""
    text = json.dumps(plain(asdict(record)), indent=1, allow_nan=False)
    return (_short_lists(text) + "\n").encode()


def read_record(path: Path) -> Record:
    """The record in `path` (a record.json or its folder).

    Raises FileError if it is missing, damaged, or written by a newer schema.
    """
    if path.is_dir():
        path = path / FILE_NAME
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileError(
            f"no record at {path}: name a run folder made by `firefly-cl run`"
        ) from None
    except OSError as error:
        raise FileError(
            f"cannot read {path} ({error.strerror}): check the path and its permissions"
        ) from None
    except ValueError as error:  # JSON and UTF-8 errors both
        raise FileError(
            f"{path} is damaged ({_one_line(error)}): delete it and run the cell again"
        ) from None
    return _record(content, path)


def _record(content: Any, path: Path) -> Record:
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, int):
        raise FileError(f"{path} is not a record (no schema number): name a run's {FILE_NAME}")
    if schema > SCHEMA:
        raise FileError(
            f"{path} has schema {schema}, newer than {SCHEMA}: read it with a newer firefly_cl"
        )
    names = [each.name for each in fields(Record)]
    content = {"reuse": [], "class_incremental": {}, "latency": {}, **content}
    wrong = damage(content)
    if wrong is not None:
        raise FileError(f"{path} is damaged ({wrong}): delete it and run the cell again")
    return Record(**{name: content[name] for name in names})


def find_records(paths: Sequence[Path]) -> list[Path]:
    """The record files in `paths` and below, each once, sorted; FileError where there is none."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise FileError(f"{path} does not exist: name a folder made by `firefly-cl run`")
        if path.is_file() and path.name != FILE_NAME:
            raise FileError(f"{path} is a file: name a run folder or its {FILE_NAME}")
        below = [path] if path.is_file() else sorted(path.rglob(FILE_NAME))
        if not below:
            raise FileError(f"no {FILE_NAME} in {path} or below: make one with `firefly-cl run`")
        found.update(dict.fromkeys(below))
    return list(found)


def plain(value: Any) -> Any:
    """`value` in JSON's own types: scalars of arrays unwrapped, numbers not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def _short_lists(text: str) -> str:
    """Join lists of numbers onto one line, so that a matrix reads as one."""
    lines: list[str] = []
    gathered: list[str] | None = None
    for line in text.split("\n"):
        item = line.strip()
        if line.endswith("["):
            if gathered is not None:
                lines.extend(gathered)
            gathered = [line]
        elif gathered is not None and item.rstrip(",") == "]":
            lines.append(gathered[0] + " ".join(part.strip() for part in gathered[1:]) + item)
            gathered = None
        elif gathered is not None and _is_scalar(item):
            gathered.append(line)
        else:
            if gathered is not None:
                lines.extend(gathered)
                gathered = None
            lines.append(line)
    return "\n".join(lines)


def _is_scalar(item: str) -> bool:
    return item[:1] in "-0123456789ntf" and not item.endswith(("{", "["))


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0]
