"""The lock of a run folder: one process at a time runs what is kept there."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from firefly_cl.errors import FileError, FolderInUse

LOCK_NAME = ".lock"
"""What the system locks; the empty file stays, for to remove it would let two processes in."""

HOLDER_NAME = ".lock.holder"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder; the system lets go of it for a process that dies.

    Raises FolderInUse, which tells who holds it, and FileError where it cannot be locked.
    """
    lock, holder = FileLock(folder / LOCK_NAME), folder / HOLDER_NAME
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUse(
            f"{folder} is in use by {_who(holder)}: wait until that ends, or choose another --out"
        ) from None
    except OSError as error:
        raise FileError(
            f"cannot write {folder / LOCK_NAME} ({error.strerror or error}): free space or choose "
            "a folder that can be written"
        ) from error
    try:
        with contextlib.suppress(OSError):  # a full disk is told of where it matters
            told = {"process": os.getpid(), "host": socket.gethostname()}
            holder.write_text(json.dumps(told), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    try:
        told = json.loads(holder.read_bytes())
        return f"process {told['process']} on {told['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun, or let go
        return "another process"
