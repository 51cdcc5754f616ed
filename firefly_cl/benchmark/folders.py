"""Run folders: OUT/<scenario>/<strategy>-seed<k>/ with the record, probe, model and events."""

from __future__ import annotations

import shutil
from pathlib import Path

from firefly_cl.benchmark.configuration import Cell, differences
from firefly_cl.benchmark.records import FILE_NAME, Record, read_record, write_atomic
from firefly_cl.errors import FileError

PROBE_NAME = "probe.safetensors"
MODEL_FOLDER = "model"
EVENTS_FOLDER = "events"


def check_writable(folder: Path) -> None:
    """Make `folder` and write a file there; FileError if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot make {folder} ({error.strerror}): choose a writable folder with --out"
        ) from error
    try:
        write_atomic(folder / ".writable", b"")
        (folder / ".writable").unlink()
    except (FileError, OSError):
        raise FileError(f"cannot write in {folder}: choose a writable folder with --out") from None


def finished_record(cell: Cell, folder: Path) -> Record | None:
    """The finished record that `folder` holds of this very cell, None if it must (still) run.

    Raises FileError if the folder holds a run of another configuration.
    """
    if not (folder / FILE_NAME).exists():
        return None
    record = read_record(folder)
    changed = differences(record.configuration, cell.as_json())
    if changed:
        name, (found, asked) = next(iter(changed.items()))
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise FileError(
            f"{folder} holds a run with {name} {found!r}, not {asked!r}{others}: "
            "choose another --out, or discard it with --overwrite"
        )
    return record if record.finished else None


def clear(folder: Path) -> None:
    """Remove what a run of a cell keeps in `folder`, and nothing else."""
    try:
        for name in (FILE_NAME, PROBE_NAME):
            (folder / name).unlink(missing_ok=True)
        for name in (MODEL_FOLDER, EVENTS_FOLDER):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
    except OSError as error:
        raise FileError(
            f"cannot empty {folder} ({error.strerror}): choose another --out"
        ) from error
