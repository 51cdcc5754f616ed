"""Executors: what runs the jobs of a grid. A job is one cell; its run is kept in its folder."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.failures import Failure, write_failure
from firefly_cl.errors import FileError

GRACE = 15.0
"""Seconds that a worker has to stop in, once it is told to."""

_BOOT = """\
import importlib, json, sys
sys.path[:], module, function = json.loads(sys.argv[1])
getattr(importlib.import_module(module), function)()
"""


@dataclass(frozen=True)
class Job:
    """A cell to run in `folder`; `threads` that its run must have, None if any number will do.

    save_every: minutes between snapshots inside a task, 0 for none.
    """

    cell: Cell
    folder: Path
    threads: int | None = None
    data_dir: Path | None = None
    download: bool = False
    save_every: float = 0.0

    def as_text(self) -> str:
        """One line of JSON."""
        return json.dumps({**asdict(self), "cell": self.cell.as_json()}, default=str)


def job_from(text: str) -> Job:
    """The job that `as_text` wrote."""
    told = json.loads(text)
    data_dir = told["data_dir"]
    return Job(
        cell=Cell(**told["cell"]),
        folder=Path(told["folder"]),
        threads=told["threads"],
        data_dir=None if data_dir is None else Path(data_dir),
        download=told["download"],
        save_every=told["save_every"],
    )


@dataclass(frozen=True)
class News:
    """What is heard of a job; `done`: the share of its cell that is done.

    started, then resumed or discarded where there was an unfinished run, progress and tasks,
    and at last ended or failed; after lost, a job is started again.
    """

    kind: Literal["started", "resumed", "discarded", "progress", "task", "lost", "ended", "failed"]
    text: str = ""
    done: float = 0.0


Hear = Callable[[Job, News], None]


class Executor(Protocol):
    """Runs jobs, here or elsewhere; each by `worker.perform`, in a process of its own.

    All that a job leaves is in its folder: its record, or what ended it. So whoever drives an
    executor may be stopped, and started again with the jobs that are not finished.
    """

    def run(self, jobs: Sequence[Job], hear: Hear) -> None:
        """Run the jobs, in about that order, until each has ended or failed.

        `hear` is called in the thread of the caller. A job whose process dies is started again a
        stated number of times. KeyboardInterrupt stops what runs, and is raised on.
        """


class LocalProcesses:
    """Runs `workers` jobs at a time on this machine, each in a fresh process of this Python.

    The cores are divided among the workers, a thread at least for each. A begun run keeps its
    number of threads, and waits until so many cores are free.
    """

    def __init__(
        self,
        workers: int,
        cores: int,
        retries: int = 2,
        entry: tuple[str, str] = ("firefly_cl.benchmark.worker", "main"),
    ) -> None:
        self.workers = workers
        self.threads = max(1, cores // workers)
        self.cores = max(cores, workers)
        self.retries = retries
        self.entry = entry

    def run(self, jobs: Sequence[Job], hear: Hear) -> None:
        """See `Executor.run`."""
        waiting = deque(replace(job, threads=job.threads or self.threads) for job in jobs)
        running: list[_Worker] = []
        tries: Counter[Path] = Counter()
        mail: queue.Queue[tuple[_Worker, News | None]] = queue.Queue()
        try:
            while waiting or running:
                while (job := self._next(waiting, running)) is not None:
                    waiting.remove(job)
                    tries[job.folder] += 1
                    hear(job, News("started"))
                    running.append(_Worker(job, self.entry, mail))
                try:
                    # with a limit, for Ctrl-C is not heard on Windows while waiting without
                    worker, news = mail.get(timeout=1.0)
                except queue.Empty:
                    continue
                if news is not None:
                    worker.concluded = worker.concluded or news.kind in ("ended", "failed")
                    hear(worker.job, news)
                    continue
                running.remove(worker)
                if worker.concluded:
                    continue
                tried = tries[worker.job.folder]
                if tried <= self.retries:
                    again = f"{worker.death()}: started again, {tried} of {self.retries}"
                    hear(worker.job, News("lost", again))
                    waiting.appendleft(worker.job)
                else:
                    hear(worker.job, News("failed", worker.give_up()))
        finally:
            _stop(running)

    def _next(self, waiting: deque[Job], running: Sequence[_Worker]) -> Job | None:
        free = self.cores - sum(worker.job.threads or 1 for worker in running)
        if len(running) >= self.workers:
            return None
        fits = (job for job in waiting if not running or (job.threads or 1) <= free)
        return next(fits, None)


class _Worker:
    """A process that does one job and writes its news, a line of JSON each.

    It stops when its standard input ends: when it is told to, and when this process dies.
    """

    def __init__(
        self, job: Job, entry: tuple[str, str], mail: queue.Queue[tuple[_Worker, News | None]]
    ) -> None:
        self.job = job
        self.concluded = False
        self._said = tempfile.TemporaryFile()
        threads = str(job.threads)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps([sys.path, *entry])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={
                **os.environ,
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                "OPENBLAS_NUM_THREADS": threads,
            },
            start_new_session=True,  # Ctrl-C is for this process, which stops its workers
        )
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it died: its exit is noticed below
            self.process.stdin.write(f"{job.as_text()}\n".encode())
            self.process.stdin.flush()
        threading.Thread(target=self._listen, args=(mail,), daemon=True).start()

    def _listen(self, mail: queue.Queue[tuple[_Worker, News | None]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError, TypeError):  # cut off by a kill
                    mail.put((self, News(**json.loads(line))))
        self.process.wait()
        mail.put((self, None))

    def tell_to_stop(self) -> None:
        """End its input."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def death(self) -> str:
        """How the process ended, in a few words."""
        code = self.process.returncode
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            memory = " (out of memory? try fewer --workers)" if name == "SIGKILL" else ""
            return f"its process was killed by {name}{memory}"
        last = self._last_words().strip().rpartition("\n")[2]
        return f"its process ended with code {code}" + (f" ({last[:200]})" if last else "")

    def give_up(self) -> str:
        """Keep in the folder that the process ended, and say how."""
        why = self.death()
        with contextlib.suppress(FileError):  # it is told all the same
            failure = Failure(self.job.cell.as_json(), why, self._last_words())
            write_failure(self.job.folder, failure)
        return why

    def _last_words(self, limit: int = 10_000) -> str:
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - limit))
        return self._said.read().decode(errors="replace")


def _stop(running: Sequence[_Worker]) -> None:
    """Stop the workers: all at once, and by force those that do not, or at another Ctrl-C."""
    for worker in running:
        worker.tell_to_stop()
    try:
        for worker in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(GRACE)
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.wait()
