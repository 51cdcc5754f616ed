"""A worker that loads no torch and does what the options of its cell say."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.executors import Job, News
from firefly_cl.benchmark.worker import serve


def job(folder: Path, threads: int | None = None, device: str = "cpu", **options: str) -> Job:
    """One whose worker behaves by `options`: die, exit, sleep."""
    folder.mkdir(parents=True, exist_ok=True)
    cell = Cell("fake", "fake", 0, "mlp", device=device, options=options)
    return Job(cell, folder, threads)


def act(job: Job, tell: Callable[[News], None]) -> None:
    """Leave a file that tells of this process, and end as asked."""
    options = job.cell.options
    began = time.monotonic()
    tries = len(list(job.folder.glob("process-*")))
    mark = job.folder / f"process-{os.getpid()}"
    mark.write_text("began")
    print("printed by some library", flush=True)
    try:
        tell(News("progress", "under way", 0.5))
        if tries < int(options.get("die", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        if "exit" in options:
            print("a traceback\nno such thing", file=sys.stderr, flush=True)
            os._exit(int(options["exit"]))
        while time.monotonic() < began + float(options.get("sleep", 0)):
            time.sleep(0.02)
    except KeyboardInterrupt:
        mark.write_text("stopped")
        raise
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    seen = " ".join(os.environ.get(name, "-") for name in names)
    mark.write_text(f"{seen} {began} {time.monotonic()}")
    tell(News("ended", done=1.0))


def main() -> None:
    """The entry of the worker."""
    serve(act)


def told_by(job: Job) -> list[Any]:
    """What the processes of a job left, in the order of their starts."""
    marks = sorted(job.folder.glob("process-*"), key=lambda path: path.stat().st_mtime_ns)
    return [mark.read_text() for mark in marks]
