"""Runs cells in children of one process that has run them before, and lets them die.

kill_runs.py kills FOLDER SEED KILLS: at random moments, by SIGKILL.
kill_runs.py disk FOLDER KILOBYTES STEP: on a disk that is full, and grows by a step each time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from blank_pictures import blank_pictures

from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.executors import Job, News
from firefly_cl.benchmark.failures import read_failure
from firefly_cl.benchmark.folders import SNAPSHOT_NAME
from firefly_cl.benchmark.records import read_record
from firefly_cl.benchmark.worker import perform
from firefly_cl.errors import FileError

FIREFLY = Cell(
    "split-digits",
    "firefly",
    0,
    "mlp",
    width=0.25,
    tasks=3,
    recipe={"epochs": 2, "augmentation": {"crop_padding": 1, "flip": False}},
    options={"grow_at": "0.5", "patience": "-10", "settings.steps": "2"},
)
REPLAY = Cell(
    "split-digits",
    "replay",
    0,
    "mlp",
    width=0.25,
    tasks=4,
    recipe=FIREFLY.recipe,
    options={"mem_size": "40"},
)


KILLS_OF_A_RUN = 2
"""Then it may come to its end: on a busy machine all kills would fall into one run's last task."""

ENDED = os.WEXITED | os.WNOWAIT
"""For looking at a child that has ended, and leaving it to be waited for."""


def child(cell: Cell, folder: Path, tell: Callable[[News], None], save_every: float = 0.0) -> int:
    """The id of a process that runs `cell` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    process = os.fork()
    if process:
        return process
    try:
        perform(Job(cell, folder, threads=1, save_every=save_every), tell)
    finally:
        os._exit(0)


def run_whole(cell: Cell, folder: Path) -> None:
    """Run `cell` here, to its end."""
    folder.mkdir(parents=True)
    perform(Job(cell, folder, threads=1), silent)


def silent(news: News) -> None:
    """Tell nobody."""


def tasks_in(folder: Path) -> int:
    """Tasks that the run in `folder` has ended."""
    try:
        return len(read_record(folder).accuracy)
    except FileError as error:
        if not str(error).startswith("no record at "):
            raise
        return 0  # none yet, or one that a run which starts again has just removed


def finished(folder: Path) -> bool:
    """Whether the run in `folder` has come to its end."""
    return tasks_in(folder) > 0 and read_record(folder).finished


def kills(folder: Path, seed: int, number: int) -> dict[str, object]:
    """Kill runs of each strategy `number` times; what each had ended, how many had a snapshot."""
    draw = random.Random(seed)
    runs: list[list[str]] = []
    ended: dict[str, list[int]] = {}
    inside = 0
    # what is loaded at first is no part of the time of a task
    run_whole(replace(FIREFLY, tasks=1), folder / "first")
    for cell in (FIREFLY, REPLAY):
        ended[cell.strategy] = []
        whole = folder / f"{cell.strategy}-whole"
        began = time.monotonic()
        run_whole(cell, whole)
        a_task = (time.monotonic() - began) / (cell.tasks or 1)
        attempt = 0
        while len(ended[cell.strategy]) < number:
            killed = folder / f"{cell.strategy}-killed-{attempt}"
            left = min(KILLS_OF_A_RUN, number - len(ended[cell.strategy]))
            while not finished(killed):
                # of every other run, snapshots are kept inside tasks: after each epoch
                process = child(cell, killed, silent, save_every=1e-9 * (attempt % 2))
                here = left == 1 and attempt % 2 == 1  # chance alone may miss all of them
                if left and kill(process, cell, killed, draw, a_task, here):
                    left -= 1
                    ended[cell.strategy].append(tasks_in(killed))
                    inside += (killed / SNAPSHOT_NAME).exists()
                    continue
                os.waitpid(process, 0)
                if not finished(killed):
                    raise RuntimeError(f"{killed} failed: {read_failure(killed)}")
            runs.append([str(whole), str(killed)])
            attempt += 1
    return {"ended": ended, "inside": inside, "runs": runs}


def kill(
    process: int, cell: Cell, folder: Path, draw: random.Random, a_task: float, inside: bool
) -> bool:
    """Kill a run in its next task or in the one behind; False if it came to its end before.

    inside: as soon as there is a snapshot inside a task.
    """
    task = min(tasks_in(folder) + draw.randrange(2), (cell.tasks or 1) - 1)
    moment = 0.0 if inside else draw.uniform(0.0, a_task)

    def waits() -> bool:
        early = not (folder / SNAPSHOT_NAME).exists() if inside else tasks_in(folder) < task
        return early and not os.waitid(os.P_PID, process, ENDED | os.WNOHANG)

    while waits():
        time.sleep(0.002)
    time.sleep(moment)
    os.kill(process, signal.SIGKILL)
    told = os.waitid(os.P_PID, process, ENDED)
    if told is None or told.si_code != os.CLD_KILLED:
        return False
    os.waitpid(process, 0)
    return True


def disk(folder: Path, kilobytes: int, step: int) -> dict[str, object]:
    """Run on a disk of so many kilobytes, grown until it is enough; what was told each time."""
    whole, small, full = (folder / name for name in ("whole", "small", "full"))
    run_whole(FIREFLY, whole)
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "x", small], check=True)
    told: list[dict[str, object]] = []
    run = small / "run"
    while not finished(run):
        news = folder / "news"
        news.write_text("")

        def tell(one: News, news: Path = news) -> None:
            with news.open("a") as file:
                print(json.dumps(asdict(one)), file=file)

        os.waitpid(child(FIREFLY, run, tell), 0)
        last = json.loads(news.read_text().splitlines()[-1])
        told.append({"kind": last["kind"], "text": last["text"], "tasks": tasks_in(run)})
        kilobytes += step
        size = f"remount,size={kilobytes}k"
        subprocess.run(["mount", "-o", size, small], check=True)
    shutil.copytree(run, full)
    return {"told": told, "runs": [[str(whole), str(full)]]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    blank_pictures()
    what, where, *numbers = sys.argv[1:]
    asked = {"kills": kills, "disk": disk}[what]
    print(json.dumps(asked(Path(where), *map(int, numbers))))
