"""Ray's side of the Ray executor: submits jobs to a cluster, and what each does on its machine."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import queue
import re
import secrets
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError

from firefly_cl.benchmark.child import Answer, serve
from firefly_cl.benchmark.environment import physical_cores
from firefly_cl.benchmark.executors import THREAD_VARIABLES, Job, News, job_from
from firefly_cl.benchmark.failures import Failure, write_failure
from firefly_cl.benchmark.lock import held
from firefly_cl.benchmark.ray_executor import RayCluster, unreachable
from firefly_cl.benchmark.records import write_atomic
from firefly_cl.errors import ClusterError, FileError, FireflyError, FolderInUse

INTERVAL = 1.0
"""Seconds between news of progress, which come from many machines."""

CALL = 5.0
"""Seconds in which the machine of an address has to take a call."""

PATIENCE = 120.0
"""Seconds to wait for a process of a driver that died: it is being stopped, or its machine has
gone, and a file server gives up on that."""

Tell = Callable[[Answer], None]


def main() -> None:
    """Be the child of a `RayCluster`: run what it asks for, and tell of it."""
    serve(_drive)


def _drive(line: str, tell: Tell) -> None:
    asked = json.loads(line)
    jobs = [job_from(text) for text in asked.pop("jobs")]
    cluster = RayCluster(**asked)
    jobs = [replace(job, threads=job.threads or cluster.cpus) for job in jobs]
    try:
        _join(cluster.address)
        try:
            tell({"joined": True})
            _check_room(jobs, cluster)
            with _seen_by_all(jobs) as name:
                _run(jobs, cluster, name, tell)
        finally:
            ray.shutdown()  # ends what still runs
    except FireflyError as error:
        tell({"error": str(error)})
    else:
        tell({"end": True})


def _join(address: str) -> None:
    """Become a driver of the cluster; raises ClusterError."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # as local processes have, not 15
        ray.init("local", num_cpus=physical_cores(), include_dashboard=False, **quiet)
        return
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), CALL).close()
        ray.init(address, **quiet)
    except (OSError, OverflowError) as error:
        raise ClusterError(unreachable(address)) from error
    except (RuntimeError, ValueError) as error:  # such as another version of Ray or Python
        raise ClusterError(f"cannot join the Ray at {address}: {_in_a_line(error)}") from error


def _check_room(jobs: Sequence[Job], cluster: RayCluster) -> None:
    """Raise ClusterError where no machine could ever take a job: Ray would wait for one."""
    nodes: Callable[[], Sequence[Mapping[str, Any]]] = ray.nodes
    machines = [node["Resources"] for node in nodes() if node["Alive"]]
    for job in jobs:
        cpus, gpus = _needs(job, cluster)
        if any(m.get("CPU", 0) >= cpus and m.get("GPU", 0) >= gpus for m in machines):
            continue
        has = max(((m.get("CPU", 0), m.get("GPU", 0)) for m in machines), default=(0, 0))
        whose, remedy = "a cell", "give less by --cpus-per-cell or --gpus-per-cell"
        if cpus != cluster.cpus:
            whose = f"{job.folder}, which goes on with the threads it began with,"
            remedy = "join a larger machine, or discard it with --overwrite"
        raise ClusterError(
            f"{whose} needs {_amount(cpus, gpus)}, and the largest machine of this Ray has "
            f"{_amount(*has)}: {remedy}"
        )


def _needs(job: Job, cluster: RayCluster) -> tuple[int, float]:
    """CPUs and GPUs."""
    return job.threads or 1, 0.0 if job.cell.device == "cpu" else cluster.gpus


def _amount(cpus: float, gpus: float) -> str:
    told = f"{cpus:g} CPU{'' if cpus == 1 else 's'}"
    return told + (f" and {gpus:g} GPU{'' if gpus == 1 else 's'}" if gpus else "")


@contextlib.contextmanager
def _seen_by_all(jobs: Sequence[Job]) -> Iterator[str]:
    """The name of a file beside the folders of the jobs: a machine without it has other folders."""
    name = f".ray-{secrets.token_hex(8)}"
    marks = [parent / name for parent in dict.fromkeys(job.folder.parent for job in jobs)]
    try:
        for mark in marks:
            write_atomic(mark, b"")
        yield name
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)


def _run(jobs: Sequence[Job], cluster: RayCluster, seen: str, tell: Tell) -> None:
    """Run the jobs, which are told of by their numbers; raises ClusterError."""
    waiting = deque(range(len(jobs)))
    running: dict[Any, int] = {}
    hosts: dict[int, str] = {}
    tries: Counter[int] = Counter()
    concluded: set[int] = set()

    def submit(number: int) -> None:
        cpus, gpus = _needs(jobs[number], cluster)
        task = _on_machine.options(num_cpus=cpus, num_gpus=gpus)
        running[task.remote(jobs[number].as_text(), cluster.entry, seen)] = number
        tries[number] += 1

    def lost(number: int, error: Exception) -> None:
        why = _death(error, hosts.pop(number, ""))
        if tries[number] <= cluster.retries:
            again = f"{why}: started again, {tries[number]} of {cluster.retries}"
            tell({"job": number, "news": asdict(News("lost", again))})
            waiting.appendleft(number)
            return
        with contextlib.suppress(FileError):  # it is told all the same
            failure = Failure(jobs[number].cell.as_json(), why, _words(error))
            write_failure(jobs[number].folder, failure)
        tell({"job": number, "news": asdict(News("failed", why))})

    while waiting or running:
        while waiting and (cluster.workers is None or len(running) < cluster.workers):
            submit(waiting.popleft())
        ready: Sequence[Any] = ray.wait(list(running), timeout=1.0)[0]
        for stream in ready:
            number = running[stream]
            try:
                told: Any = ray.get(next(stream))
            except (StopIteration, RayError) as error:
                del running[stream]
                if number not in concluded:
                    lost(number, error)
                continue
            if "error" in told:
                raise ClusterError(told["error"])
            hosts[number] = told["host"]
            if told["news"]["kind"] in ("ended", "failed"):
                concluded.add(number)
            tell({"job": number, "news": told["news"]})


# Retries are ours: they are told of. A process that has done one job is not used for another.
@ray.remote(num_returns="streaming", max_retries=0, max_calls=1)
def _on_machine(job: str, entry: Sequence[str], seen: str) -> Iterator[Answer]:
    """What a process of the cluster does: one job, in a thread, so that its news are yielded."""
    todo = job_from(job)
    host = socket.gethostname()
    parent = todo.folder.parent
    if not (parent / seen).exists():
        yield {
            "error": f"{host} does not see the {parent} of this machine: choose an --out that "
            "every machine of the cluster has, at one path"
        }
        return
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(todo.threads)))
    mail: queue.SimpleQueue[News | BaseException | None] = queue.SimpleQueue()
    last_told = -INTERVAL

    def tell(news: News) -> None:
        nonlocal last_told
        if news.kind == "progress":
            if time.monotonic() - last_told < INTERVAL:
                return
            last_told = time.monotonic()
        mail.put(news)

    def act() -> None:
        module, function = entry
        try:
            _wait_for(todo.folder, tell)
            getattr(importlib.import_module(module), function)(todo, tell)
        except BaseException as error:
            mail.put(error)
        mail.put(None)

    threading.Thread(target=act, daemon=True).start()
    told: News | BaseException | None = News("started", f"started on {host}")
    while told is not None:
        if isinstance(told, BaseException):
            raise RuntimeError(f"the job ended by {told!r}") from told
        yield {"host": host, "news": asdict(told)}
        told = mail.get()


def _wait_for(folder: Path, tell: Callable[[News], None]) -> None:
    """Wait until no process runs in `folder`; in the end the run says who does, and fails."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with held(folder):
                return
        except FolderInUse as error:
            tell(News("progress", f"waits: {error}"))
            time.sleep(0.5)
        except FileError:
            return


def _death(error: Exception, host: str) -> str:
    """How the process of a job ended, in a few words."""
    process = f"its process on {host}" if host else "its process"
    if isinstance(error, OutOfMemoryError):
        return f"{process} was killed, for memory ran out: more --cpus-per-cell are fewer at a time"
    if isinstance(error, NodeDiedError):
        return f"{process} died with its machine"
    if isinstance(error, WorkerCrashedError):
        return f"{process} died (killed, or out of memory?)"
    return f"{process} ended: {_in_a_line(error)}"


def _in_a_line(error: Exception) -> str:
    """The last line, which says what it was."""
    return _words(error).strip().rpartition("\n")[2][:300]


def _words(error: Exception) -> str:
    return re.sub(r"\x1b\[\d+m", "", str(error))  # Ray colours its tracebacks
