"""Verify a run: its model files must give the logits recorded when each task ended, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from firefly_cl.benchmark.configuration import differences
from firefly_cl.benchmark.folders import MODEL_FOLDER
from firefly_cl.benchmark.records import read_record
from firefly_cl.errors import FileError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    Logits = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class TaskCheck:
    """Largest absolute difference of one task's probe logits from those recorded when it ended.

    `equal` is bit equality; `as_saved` tells whether the files still give the logits that the
    run's last state gave: where they do, a difference is the strategy's forgetting.
    """

    task: int
    name: str
    difference: float
    equal: bool
    as_saved: bool


def verify(folder: Path, load: Callable[[Path], Logits] | None = None) -> list[TaskCheck]:
    """Recompute every recorded task's logits on the probe kept in the run `folder`.

    Computes with the number of threads that the run had, since sums depend on it.
    Raises FileError if a file of the run is missing or damaged.
    """
    from firefly_cl.benchmark.environment import use_threads
    from firefly_cl.benchmark.probe import read_probe
    from firefly_cl.continual.learner import load_logits

    record = read_record(folder)
    trained = range(len(record.flops))
    if not trained:
        raise FileError(f"{folder} has no trained task to verify: let the run go on")
    probe = read_probe(folder)
    missing = [task for task in trained if task not in probe.images]
    if missing:
        raise FileError(f"the probe in {folder} lacks task {missing[0]}: run the cell again")
    threads = record.hardware.get("threads")
    if isinstance(threads, int) and threads > 0:
        use_threads(threads)
    logits = (load or load_logits)(folder / MODEL_FOLDER)
    return [
        _check(
            task,
            record.tasks[task],
            logits(task, probe.images[task]).cpu(),
            probe.ended[task],
            probe.last[task],
        )
        for task in sorted(probe.images)
    ]


def unlike_here(folder: Path) -> list[str]:
    """What the run had otherwise than this process: versions, commit, processor, cores.

    Where there is anything, bits may differ although the files are as saved. What the record does
    not tell is not compared. Raises FileError.
    """
    from firefly_cl.benchmark.environment import hardware, versions

    record = read_record(folder)
    had = record.hardware
    here = hardware(had.get("threads", 1), had.get("device", "cpu"))
    told = {name: value for name, value in here.items() if name in had}
    return [*differences(record.versions, versions()), *differences(had, told)]


def _check(task: int, name: str, found: Tensor, ended: Tensor, last: Tensor) -> TaskCheck:
    if found.shape != ended.shape:
        return TaskCheck(task, name, float("inf"), equal=False, as_saved=False)
    difference = float((found.double() - ended.double()).abs().max())
    return TaskCheck(task, name, difference, _bit_equal(found, ended), _bit_equal(found, last))


def _bit_equal(one: Tensor, two: Tensor) -> bool:
    import torch

    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    # compared as bytes: == would call two NaN different and 0 and -0 the same
    return torch.equal(one.contiguous().view(torch.uint8), two.contiguous().view(torch.uint8))


def print_checks(
    folder: Path, checks: list[TaskCheck], console: Console, unlike: Sequence[str] = ()
) -> None:
    """Print the largest difference of each task, and what it means if there is one.

    unlike: what the run had otherwise than this process.
    """
    from rich.table import Table

    console.print(str(folder), style="bold", soft_wrap=True, highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("task", justify="right")
    table.add_column("name")
    table.add_column("largest difference", justify="right")
    table.add_column("")
    for check in checks:
        verdict = "bit-equal" if check.equal else "[red]changed[/red]"
        table.add_row(str(check.task + 1), check.name, f"{check.difference:.3g}", verdict)
    console.print(table)
    changed = [check for check in checks if not check.equal]
    if not changed:
        console.print(f"{len(checks)} of {len(checks)} tasks bit-equal\n")
    elif all(check.as_saved for check in checks):
        console.print(
            f"{len(changed)} of {len(checks)} tasks changed after they ended: the strategy "
            "forgot (the files are as saved)\n"
        )
    elif unlike:
        console.print(
            f"{len(changed)} of {len(checks)} tasks changed: the run had another "
            f"{', '.join(unlike)}, which may round differently; verify with the same\n"
        )
    else:
        console.print(
            f"{len(changed)} of {len(checks)} tasks changed: the files are not those that the "
            "run saved\n"
        )
