"""Run folders: OUT/<scenario>/<strategy>-seed<k>/ with the record, probe, model and events."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from firefly_cl.benchmark.configuration import Cell, differences
from firefly_cl.benchmark.lock import held
from firefly_cl.benchmark.records import FILE_NAME, Record, read_record
from firefly_cl.errors import FileError

PROBE_NAME = "probe.safetensors"
MODEL_FOLDER = "model"
MODEL_NEW = "model.new"
RECORD_BEFORE, PROBE_BEFORE, MODEL_BEFORE = "record.before", "probe.before", "model.before"
SNAPSHOT_NAME = "snapshot.safetensors"
EVENTS_FOLDER = "events"
ERROR_NAME = "error.json"


def check_writable(folder: Path) -> None:
    """Make `folder` and write a file there; FileError if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot make {folder} ({error.strerror}): choose a writable folder with --out"
        ) from error
    try:
        with tempfile.TemporaryFile(dir=folder):  # no name: runs may share the folder
            pass
    except OSError:
        raise FileError(f"cannot write in {folder}: choose a writable folder with --out") from None


def finished_record(cell: Cell, folder: Path) -> Record | None:
    """The finished record that `folder` holds of this very cell, None if it must (still) run.

    Raises FileError if the folder holds a run of another configuration, of which something is done.
    """
    record = newest_record(folder)
    if record is None or not (record.finished or unfinished_record(folder)):
        return None
    changed = differences(record.configuration, cell.as_json())
    if changed:
        name, (found, asked) = next(iter(changed.items()))
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise FileError(
            f"{folder} holds a run with {name} {found!r}, not {asked!r}{others}: "
            "choose another --out, or discard it with --overwrite"
        )
    return record if record.finished else None


def is_finished(cell: Cell, folder: Path) -> bool:
    """Whether `folder` holds a finished run of this very cell, whose settings need no check."""
    try:
        return finished_record(cell, folder) is not None
    except FileError:  # told where it is to be run
        return False


def unfinished_record(folder: Path) -> Record | None:
    """The record of a run in `folder` that goes on: some tasks are done, or a part of the first."""
    record = newest_record(folder)
    if record is None or record.finished:
        return None
    return record if record.accuracy or (folder / SNAPSHOT_NAME).exists() else None


def begun_threads(folder: Path) -> int | None:
    """Threads that a begun run must go on with to come to the same bits; None for others."""
    record = unfinished_record(folder)
    return None if record is None else int(record.hardware["threads"])


def newest_record(folder: Path) -> Record | None:
    """The record in `folder`, or where it is missing or damaged that of the task before, or None.

    Raises FileError if there is one and none can be read.
    """
    if not any((folder / name).exists() for name in (FILE_NAME, RECORD_BEFORE)):
        return None
    try:
        return read_record(folder)
    except FileError as error:
        try:
            return read_record(folder / RECORD_BEFORE)
        except FileError:
            raise error from None


def remove_parts(folder: Path) -> None:
    """Remove files that a killed process had not written to the end."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove what a run of a cell keeps in `folder`, and nothing else."""
    try:
        files = (RECORD_BEFORE, FILE_NAME, PROBE_NAME, PROBE_BEFORE, SNAPSHOT_NAME, ERROR_NAME)
        for name in files:
            (folder / name).unlink(missing_ok=True)
        for name in (MODEL_FOLDER, MODEL_BEFORE, MODEL_NEW, EVENTS_FOLDER):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        remove_parts(folder)
    except OSError as error:
        raise FileError(
            f"cannot empty {folder} ({error.strerror}): choose another --out"
        ) from error


def discard(folder: Path) -> None:
    """As `clear`, unless a process runs there; raises FolderInUse."""
    with held(folder):
        clear(folder)
