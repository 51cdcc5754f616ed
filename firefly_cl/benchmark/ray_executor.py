"""Ray: runs the jobs of a grid on the machines of a cluster."""

from __future__ import annotations

import importlib.util
import json
import queue
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from firefly_cl.benchmark.child import Answer, Child, stop
from firefly_cl.benchmark.executors import Hear, Job, News
from firefly_cl.errors import ClusterError, ConfigurationError

PATIENCE = 30.0
"""Seconds that joining a Ray may take: where none answers, Ray itself tries for minutes."""


@dataclass(frozen=True)
class RayCluster:
    """Runs jobs on the machines of a Ray cluster, each in a fresh process there.

    Moritz et al. 2018, arXiv 1712.05889. `address`: "local" for a Ray of its own on this machine,
    "auto" for the one that this machine is part of, or HOST:PORT of that one's head. A job takes
    `cpus` cores, and so many threads, and `gpus` of a GPU or more if its cell is to compute on
    one; a begun run keeps its number of threads. As many jobs run at a time as there is room
    for, and not more than `workers`.

    Raises ConfigurationError for what cannot be meant, and where ray is not installed.
    """

    address: str
    cpus: int = 1
    gpus: float = 1.0
    workers: int | None = None
    retries: int = 2
    entry: tuple[str, str] = ("firefly_cl.benchmark.worker", "perform")

    def __post_init__(self) -> None:
        if self.address.startswith("ray://"):
            raise ConfigurationError(
                f"--ray {self.address} is for Ray's client: run the command on a machine of the "
                "cluster, with --ray auto"
            )
        if self.address not in ("local", "auto") and not re.fullmatch(r"\S+:\d+", self.address):
            raise ConfigurationError(
                f"--ray is {self.address!r}: give local, auto, or HOST:PORT of the head"
            )
        if self.cpus < 1:
            raise ConfigurationError(f"--cpus-per-cell is {self.cpus}: give 1 or more")
        if not self.gpus > 0 or (self.gpus > 1 and not float(self.gpus).is_integer()):
            raise ConfigurationError(
                f"--gpus-per-cell is {self.gpus:g}: give a share between 0 and 1, or whole GPUs"
            )
        if importlib.util.find_spec("ray") is None:
            raise ConfigurationError("ray is not installed: pip install ray")

    def run(self, jobs: Sequence[Job], hear: Hear) -> None:
        """See `Executor.run`. Raises ClusterError where the cluster cannot be used.

        Ray itself is used in a child process: it writes to the terminal as it likes, and ends
        its process when it loses the cluster.
        """
        asked = {**asdict(self), "jobs": [_anywhere(job).as_text() for job in jobs]}
        mail: queue.Queue[Answer | None] = queue.Queue()
        driver = Child(("firefly_cl.benchmark.ray_driver", "main"), json.dumps(asked), mail.put)
        deadline = time.monotonic() + PATIENCE
        joined = ended = False
        try:
            while not ended:
                try:
                    # with a limit, for Ctrl-C is not heard on Windows while waiting without
                    told = mail.get(timeout=1.0)
                except queue.Empty:
                    if not joined and self.address != "local" and time.monotonic() > deadline:
                        driver.process.kill()  # it has nothing to stop, and heeds nobody
                        raise ClusterError(unreachable(self.address)) from None
                    continue
                if told is None:
                    raise ClusterError(
                        f"Ray was lost ({driver.death()}): the same command goes on, once the "
                        "head of the cluster answers"
                    ) from RuntimeError(driver.last_words())
                if "error" in told:
                    raise ClusterError(told["error"])
                joined, ended = True, "end" in told
                if "news" in told:
                    hear(jobs[told["job"]], News(**told["news"]))
        finally:
            stop([driver])


def unreachable(address: str) -> str:
    """What to say where no Ray answers."""
    if address == "auto":
        return (
            "no Ray runs on this machine: start one with `ray start --head`, or join one with "
            "`ray start --address HOST:PORT`"
        )
    return f"no Ray answers at {address}: give the HOST:PORT that `ray start --head` printed"


def _anywhere(job: Job) -> Job:
    """The job with paths that mean the same in another folder."""
    data = None if job.data_dir is None else Path(job.data_dir).absolute()
    return replace(job, folder=job.folder.absolute(), data_dir=data)
