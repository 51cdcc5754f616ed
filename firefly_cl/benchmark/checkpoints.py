"""Checkpoints: record, probe and model of the last two finished tasks, with their checksums.

The newest lies in the run folder itself, the one before beside it under names that end in
`.before`. The model folder of each says what its files, its probe and its record must be, to the
bit, so that a checkpoint is either whole or not taken up. Inside a long task a snapshot is kept,
in the place of the checkpoint before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from firefly_cl.benchmark.folders import (
    MODEL_BEFORE,
    MODEL_FOLDER,
    MODEL_NEW,
    PROBE_BEFORE,
    PROBE_NAME,
    RECORD_BEFORE,
    SNAPSHOT_NAME,
    remove_parts,
)
from firefly_cl.benchmark.records import FILE_NAME, write_atomic
from firefly_cl.continual.snapshot import Snapshot, read_snapshot
from firefly_cl.errors import FileError, Unreadable

CHECKSUMS = "checksums.json"

_PLACES = {
    PROBE_NAME: (PROBE_NAME, PROBE_BEFORE),
    FILE_NAME: (FILE_NAME, RECORD_BEFORE),
}
"""Where a part of a checkpoint may lie."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: where its parts lie, and why a newer one was not taken (or None)."""

    model: Path
    probe: Path
    record: Path
    instead: str | None = None


def write_checkpoint(
    folder: Path, save: Callable[[Path], None], probe: bytes, record: bytes
) -> None:
    """Make a checkpoint the newest of a run; what was the newest becomes the one before.

    What was kept inside the task is removed.

    `save` writes the model files to a folder. At most two checkpoints are on the disk at any
    moment, and one of them is whole. Raises FileError.
    """
    new = folder / MODEL_NEW
    try:
        _remove(folder / MODEL_BEFORE)
        _remove(new)
    except OSError as error:
        raise _untidy(folder, error) from error
    save(new)
    sums = {PROBE_NAME: _digest(probe), FILE_NAME: _digest(record)}
    for path in sorted(new.rglob("*")):
        if path.is_file():
            sums[f"{MODEL_FOLDER}/{path.relative_to(new).as_posix()}"] = _digest(_content(path))
    write_atomic(new / CHECKSUMS, (json.dumps({"sha256": sums}, indent=1) + "\n").encode())
    if (folder / MODEL_FOLDER).exists():
        write_atomic(folder / PROBE_BEFORE, _content(folder / PROBE_NAME))
        write_atomic(folder / RECORD_BEFORE, _content(folder / FILE_NAME))
        _rename(folder / MODEL_FOLDER, folder / MODEL_BEFORE)
    _rename(new, folder / MODEL_FOLDER)
    write_atomic(folder / PROBE_NAME, probe)
    write_atomic(folder / FILE_NAME, record)
    try:
        (folder / SNAPSHOT_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise _untidy(folder, error) from error


def find_checkpoint(folder: Path) -> Checkpoint:
    """The newest whole checkpoint in a run folder; raises FileError where none is whole.

    Raises Unreadable where it cannot be told: what cannot be read now is not passed over.
    """
    why: list[str] = []
    for model in (MODEL_FOLDER, MODEL_BEFORE):
        try:
            sums = _checksums(folder / model)
            _check_files(folder / model, sums)
            probe = _place(folder, PROBE_NAME, sums)
            record = _place(folder, FILE_NAME, sums)
        except Unreadable:
            raise
        except FileError as error:
            why.append(str(error))
            continue
        # A newer model whose record was not written to the end is no damage.
        instead = why[0] if why and record.name != FILE_NAME else None
        return Checkpoint(folder / model, probe, record, instead)
    raise FileError(why[0])


def settle(folder: Path, found: Checkpoint) -> None:
    """Make a checkpoint that was found the newest of the run in `folder`; raises FileError."""
    try:
        for name, path in ((FILE_NAME, found.record), (PROBE_NAME, found.probe)):
            if path.name != name:
                os.replace(path, folder / name)
        if found.model.name != MODEL_FOLDER:
            _remove(folder / MODEL_FOLDER)
            found.model.rename(folder / MODEL_FOLDER)
        _remove(folder / MODEL_NEW)
        remove_parts(folder)
    except OSError as error:
        raise _untidy(folder, error) from error


def write_snapshot(folder: Path, snapshot: Snapshot, record: bytes) -> None:
    """Keep how far the task after `record` has come, in the place of the checkpoint before.

    Raises FileError.
    """
    content = replace(snapshot, record=_digest(record)).to_bytes()
    write_atomic(folder / SNAPSHOT_NAME, content)
    drop_before(folder)


def find_snapshot(folder: Path, record: bytes) -> Snapshot | None:
    """How far the task after `record` has come, if that is kept; FileError if it is damaged."""
    path = folder / SNAPSHOT_NAME
    if not path.exists():
        return None
    snapshot = read_snapshot(path)
    return snapshot if snapshot.record == _digest(record) else None


def drop_before(folder: Path) -> None:
    """Keep the newest checkpoint of a run alone; raises FileError."""
    try:
        for name in (RECORD_BEFORE, PROBE_BEFORE):
            (folder / name).unlink(missing_ok=True)
        for name in (MODEL_BEFORE, MODEL_NEW):
            _remove(folder / name)
        remove_parts(folder)
    except OSError as error:
        raise _untidy(folder, error) from error


def _checksums(model: Path) -> Mapping[str, str]:
    path = model / CHECKSUMS
    try:
        told = json.loads(_content(path))["sha256"]
        return {str(name): str(digest) for name, digest in told.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FileError(f"{path} is damaged: restore it or run the cell again") from None


def _check_files(model: Path, sums: Mapping[str, str]) -> None:
    """Raise FileError if a model file is not what its checksum says."""
    prefix = f"{MODEL_FOLDER}/"
    for name, told in sums.items():
        if name.startswith(prefix):
            _check(model / name[len(prefix) :], told)


def _place(folder: Path, part: str, sums: Mapping[str, str]) -> Path:
    """Where a part lies that has the checksum of its checkpoint; raises FileError."""
    for name in _PLACES[part]:
        path = folder / name
        if path.exists() and _digest(_content(path)) == sums.get(part):
            return path
    raise FileError(f"{folder / part} is missing or damaged (its checksum differs)")


def _check(path: Path, told: str) -> None:
    if _digest(_content(path)) != told:
        raise FileError(f"{path} is damaged (its checksum differs)")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileError(f"{path} is missing: restore it or run the cell again") from None
    except OSError as error:
        raise Unreadable.of(path, error) from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _rename(path: Path, to: Path) -> None:
    try:
        path.rename(to)
    except OSError as error:
        raise FileError(f"cannot rename {path} ({error.strerror}): check its folder") from error


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _untidy(folder: Path, error: OSError) -> FileError:
    return FileError(f"cannot tidy {folder} ({error.strerror}): check its permissions")
