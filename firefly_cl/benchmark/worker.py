"""What the process of a worker does: one job, telling of it as it goes."""

from __future__ import annotations

import contextlib
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict

from firefly_cl.benchmark import child
from firefly_cl.benchmark.executors import Job, News, job_from
from firefly_cl.benchmark.failures import Failure, write_failure
from firefly_cl.errors import FileError, FireflyError

INTERVAL = 0.2
"""Seconds between news of progress: an epoch of a small network takes less."""


def perform(job: Job, tell: Callable[[News], None]) -> None:
    """Run the cell of a job in its folder, on from its last finished task if it was begun.

    What ends it early is kept in the folder, with the traceback, and told; only KeyboardInterrupt
    is raised. Data, models and threads are this process's own.
    """
    try:
        _run(job, tell)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        if not isinstance(error, FireflyError):
            text = f"unexpected {type(error).__name__}: {text}"
        # The disk may be full, or the folder another's: it is told all the same.
        with contextlib.suppress(FileError):
            failure = _failure(job, text, traceback.format_exc(), type(error).__name__)
            write_failure(job.folder, failure)
        tell(News("failed", text))
    else:
        tell(News("ended", done=1.0))


def _failure(job: Job, error: str, trace: str, kind: str) -> Failure:
    from firefly_cl.benchmark.environment import versions

    return Failure(job.cell.as_json(), error, trace, versions(), kind)


def _run(job: Job, tell: Callable[[News], None]) -> None:
    from firefly_cl.benchmark.environment import default_threads, use_threads

    threads = job.threads or default_threads()
    use_threads(threads)

    from firefly_cl.benchmark.cell import run_cell
    from firefly_cl.benchmark.display import accuracy_so_far, news_of
    from firefly_cl.benchmark.records import Record
    from firefly_cl.benchmark.runner import Scenarios
    from firefly_cl.continual import STRATEGIES
    from firefly_cl.continual.learner import Progress

    told = 0.0

    def progress(news: Progress) -> None:
        nonlocal told
        if time.monotonic() - told < INTERVAL:
            return
        told = time.monotonic()
        within = min(news.epoch / news.epochs, 1.0) if news.epochs else 0.0
        tell(News("progress", news_of(news), (news.task + within) / max(news.tasks, 1)))

    def after(record: Record) -> tuple[str, float]:
        done, tasks = len(record.accuracy), len(record.tasks)
        return f"task {done}/{tasks}", done / tasks

    def task_ended(record: Record) -> None:
        where, done = after(record)
        tell(News("task", f"{where} done, {accuracy_so_far(record)}", done))

    def resumed(record: Record, where: str) -> None:
        tell(News("resumed", f"continues {where}", after(record)[1]))

    def discarded(record: Record, why: str) -> None:
        where, _ = after(record)
        tell(News("discarded", f"starts again, without what was done up to {where} ({why})"))

    run_cell(
        job.cell,
        Scenarios(job.data_dir, job.download).of(job.cell),
        STRATEGIES.get(job.cell.strategy),
        job.folder,
        threads=threads,
        save_every=job.save_every,
        progress=progress,
        task_ended=task_ended,
        resumed=resumed,
        discarded=discarded,
    )


def main() -> None:
    """Be a worker: `serve` a job by `perform`."""
    serve(perform)


def serve(perform: Callable[[Job, Callable[[News], None]], None]) -> None:
    """Do the job on standard input, writing news to standard output; stop where the input ends."""
    # Avalanche imports a solver that we never call, and it warns that it is not installed.
    warnings.filterwarnings("ignore", message="no QP solver found")
    child.serve(lambda line, tell: perform(job_from(line), lambda news: tell(asdict(news))))
