"""Where the cells of a grid or of a search run: on this machine or on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firefly_cl.benchmark.executors import Executor, LocalProcesses
from firefly_cl.benchmark.ray_executor import RayCluster
from firefly_cl.errors import ConfigurationError

if TYPE_CHECKING:
    from firefly_cl.commands import Benchmark, Tune


def executor_of(command: Benchmark | Tune, most: int | None = None) -> Executor:
    """What the options of a command ask for; `most`: jobs that there can be at a time.

    Raises ConfigurationError for options that cannot be meant.
    """
    for option, number, least in (("workers", command.workers, 1), ("retries", command.retries, 0)):
        if number is not None and number < least:
            raise ConfigurationError(f"--{option} is {number}: give {least} or more")
    if command.ray is not None:
        return RayCluster(
            command.ray,
            1 if command.cpus_per_cell is None else command.cpus_per_cell,
            1.0 if command.gpus_per_cell is None else command.gpus_per_cell,
            command.workers,
            command.retries,
        )
    for option, value in (("cpus", command.cpus_per_cell), ("gpus", command.gpus_per_cell)):
        if value is not None:
            raise ConfigurationError(f"--{option}-per-cell is for --ray: give that, or --workers")
    return local_processes(command.workers, command.retries, most)


def local_processes(
    workers: int | None, retries: int = 2, most: int | None = None
) -> LocalProcesses:
    """Processes of this machine, one for each core if no number is given; at most `most`."""
    from firefly_cl.benchmark.environment import default_threads, physical_cores

    workers = physical_cores() if workers is None else workers
    # OMP_NUM_THREADS, where it is set, is the most that a process may have
    cores = min(physical_cores(), default_threads() * workers)
    return LocalProcesses(workers if most is None else min(workers, most), cores, retries)
