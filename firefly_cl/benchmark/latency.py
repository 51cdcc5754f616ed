"""How long a finished learner takes to answer: milliseconds of an image, alone and in a batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firefly_cl.benchmark.records import Record
    from firefly_cl.continual.learner import Learner
    from firefly_cl.scenarios import Scenario

BATCHES = (1, 128)
"""Images that are answered together: one, as they come, and many, as fast as they go."""

TASKS = 3
"""How many tasks are timed at most: the first, the newest and, between them, evenly spread."""

SECONDS = 2.0
"""What the timing may take, unless the fewest repeats take longer."""

_LEAST, _MOST = 3, 25

_SHARE = 0.8
"""Seconds of processor time in a second of timing, that other programs leave at least."""


def measure(
    learner: Learner, scenario: Scenario, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Time answers of `learner` to training images of its tasks, from pixels to logits.

    Returns the `tasks` that were timed; for each batch size, by its number as text, the
    `milliseconds` of one image for each of them, the median over so many `repeats`, after one
    answer that does not count; the `dtype` of the answers; and the `processor_share`, seconds of
    processor time in one second of timing: below 1 on a CPU, others had it as well. Threads and
    hardware are the run's.
    """
    from firefly_cl.continual.learner import Evaluating  # loads torch, which reports do without

    tasks = spread_tasks(learner.tasks_trained)
    share = SECONDS / (len(tasks) * len(BATCHES))
    milliseconds: dict[str, list[float]] = {str(batch): [] for batch in BATCHES}
    repeats: dict[str, list[int]] = {str(batch): [] for batch in BATCHES}
    dtype = ""
    started, computed = time.perf_counter(), time.process_time()
    with learner.evaluating() if isinstance(learner, Evaluating) else nullcontext():
        for task in tasks:
            pixels = scenario.tasks[task].train.images
            for batch in BATCHES:
                images = pixels.repeat(-(-batch // len(pixels)), 1, 1, 1)[:batch]
                dtype = str(learner.logits(task, images).dtype).removeprefix("torch.")
                spent: list[float] = []
                while len(spent) < _LEAST or (sum(spent) < share and len(spent) < _MOST):
                    before = clock()
                    learner.logits(task, images)
                    spent.append(clock() - before)
                milliseconds[str(batch)].append(round(1000 * statistics.median(spent) / batch, 4))
                repeats[str(batch)].append(len(spent))
    passed = time.perf_counter() - started
    return {
        "tasks": tasks,
        "milliseconds": milliseconds,
        "repeats": repeats,
        "dtype": dtype,
        "processor_share": round((time.process_time() - computed) / passed, 3),
    }


def spread_tasks(trained: int) -> list[int]:
    """The tasks to time, of the first so many: at most TASKS, with both ends."""
    count = min(trained, TASKS)
    return [round(k * (trained - 1) / max(count - 1, 1)) for k in range(count)]


def mean_milliseconds(latency: Mapping[str, Any], batch: int) -> float | None:
    """Milliseconds of an image in such a batch, mean over the timed tasks; None without timing."""
    found = latency.get("milliseconds", {}).get(str(batch))
    return statistics.fmean(found) if found else None


def undisturbed(record: Record) -> bool:
    """Whether answers were timed and, on a CPU, no other program had much of the processor."""
    if not record.latency:
        return False
    if record.hardware.get("device") != "cpu":
        return True
    share: float = record.latency["processor_share"]
    return share >= _SHARE * int(record.hardware.get("threads", 1))


def newest_milliseconds(latency: Mapping[str, Any], batch: int) -> float | None:
    """As `mean_milliseconds`, of the newest task alone."""
    found = latency.get("milliseconds", {}).get(str(batch))
    return float(found[-1]) if found else None
