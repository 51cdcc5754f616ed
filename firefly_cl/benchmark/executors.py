"""Executors: what runs the jobs of a grid. A job is one cell; its run is kept in its folder."""

from __future__ import annotations

import contextlib
import json
import os
import queue
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from firefly_cl.benchmark.child import Answer, Child, stop
from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.failures import Failure, write_failure
from firefly_cl.errors import FileError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What libraries read, when they are loaded, to know how many threads they may have."""

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
"""What CUDA reads, when it is loaded, to know which GPUs it may use."""


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
        stated number of times. KeyboardInterrupt stops what runs, and is raised on. Raises
        FireflyError for jobs that it could never run.
        """


class LocalProcesses:
    """Runs `workers` jobs at a time on this machine, each in a fresh process of this Python.

    The cores are divided among the workers, a thread at least for each. A begun run keeps its
    number of threads, and waits until so many cores are free. Where there are several GPUs, each
    job of device cuda has the one that fewest others have.
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
        """See `Executor.run`. Raises ConfigurationError for a device that is not here."""
        _check_devices(jobs)
        waiting = deque(replace(job, threads=job.threads or self.threads) for job in jobs)
        running: list[_Worker] = []
        gpus = _gpus(jobs)
        tries: Counter[Path] = Counter()
        mail: queue.Queue[tuple[_Worker, News | None]] = queue.Queue()
        try:
            while waiting or running:
                while (job := self._next(waiting, running)) is not None:
                    waiting.remove(job)
                    tries[job.folder] += 1
                    hear(job, News("started"))
                    taken = Counter(worker.gpu for worker in running)
                    wants = gpus if job.cell.device == "cuda" else []
                    gpu = min(wants, key=taken.__getitem__, default=None)
                    running.append(_Worker(job, self.entry, mail, gpu))
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
            stop([worker.child for worker in running])

    def _next(self, waiting: deque[Job], running: Sequence[_Worker]) -> Job | None:
        free = self.cores - sum(worker.job.threads or 1 for worker in running)
        if len(running) >= self.workers:
            return None
        fits = (job for job in waiting if not running or (job.threads or 1) <= free)
        return next(fits, None)


def _check_devices(jobs: Sequence[Job]) -> None:
    for device in dict.fromkeys(job.cell.device for job in jobs):
        if device != "cpu":  # loads torch
            from firefly_cl.benchmark.plan import check_device

            check_device(device)


def _gpus(jobs: Sequence[Job]) -> list[str]:
    """The GPUs of this machine that its jobs may use, where one asks for any."""
    if all(job.cell.device != "cuda" for job in jobs):
        return []
    visible = os.environ.get(VISIBLE_GPUS)
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


class _Worker:
    """A child process that does one job, and its news; `gpu`: the only one that it sees."""

    def __init__(
        self,
        job: Job,
        entry: tuple[str, str],
        mail: queue.Queue[tuple[_Worker, News | None]],
        gpu: str | None,
    ) -> None:
        self.job = job
        self.gpu = gpu
        self.concluded = False

        def hear(told: Answer | None) -> None:
            mail.put((self, None if told is None else News(**told)))

        variables = dict.fromkeys(THREAD_VARIABLES, str(job.threads))
        if gpu is not None:
            variables[VISIBLE_GPUS] = gpu
        self.child = Child(entry, job.as_text(), hear, variables)

    def death(self) -> str:
        """How the process ended, in a few words."""
        return self.child.death(memory="try fewer --workers")

    def give_up(self) -> str:
        """Keep in the folder that the process ended, and say how."""
        why = self.death()
        with contextlib.suppress(FileError):  # it is told all the same
            failure = Failure(self.job.cell.as_json(), why, self.child.last_words())
            write_failure(self.job.folder, failure)
        return why
