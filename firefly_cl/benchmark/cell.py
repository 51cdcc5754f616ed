"""One cell: a learner is trained on a scenario's stream, and everything it did is recorded."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from firefly_cl.benchmark import class_incremental, environment
from firefly_cl.benchmark.checkpoints import (
    drop_before,
    find_checkpoint,
    find_snapshot,
    settle,
    write_checkpoint,
    write_snapshot,
)
from firefly_cl.benchmark.configuration import Cell, differences, recipe_from
from firefly_cl.benchmark.events import Events
from firefly_cl.benchmark.folders import (
    ERROR_NAME,
    EVENTS_FOLDER,
    clear,
    newest_record,
    unfinished_record,
)
from firefly_cl.benchmark.latency import measure
from firefly_cl.benchmark.lock import held
from firefly_cl.benchmark.probe import Probe, read_probe, spread
from firefly_cl.benchmark.records import (
    FILE_NAME,
    Record,
    average_accuracy,
    average_forgetting,
    read_record,
    record_bytes,
    write_record,
)
from firefly_cl.continual.learner import Drawn, Observed, Progress, Resumable, Reusing, Setup
from firefly_cl.continual.snapshot import Snapshot, Snapshots
from firefly_cl.errors import DataError, DivergenceError, FileError, Unreadable

if TYPE_CHECKING:
    from firefly_cl.continual.learner import Learner
    from firefly_cl.scenarios import Images, Scenario


def setup_of(
    cell: Cell,
    scenario: Scenario,
    progress: Callable[[Progress], None],
    snapshots: Snapshots | None = None,
) -> Setup:
    """What the builder of the cell's strategy receives."""
    recipe = recipe_from(cell.recipe)
    if not scenario.flip and recipe.augmentation.flip:  # mirroring would change the class
        recipe = replace(recipe, augmentation=replace(recipe.augmentation, flip=False))
    return Setup(
        scenario=scenario,
        backbone=cell.backbone,
        width=cell.width,
        constant_width=cell.constant_width,
        recipe=recipe,
        seed=cell.seed,
        device=torch.device(cell.device),
        budget=cell.budget,
        options=dict(cell.options),
        progress=progress,
        snapshots=snapshots or Snapshots(),
    )


def run_cell(
    cell: Cell,
    scenario: Scenario,
    build: Callable[[Setup], Learner],
    folder: Path,
    *,
    threads: int,
    overwrite: bool = False,
    save_every: float = 0.0,
    progress: Callable[[Progress], None],
    task_ended: Callable[[Record], None] = lambda record: None,
    resumed: Callable[[Record, str], None] = lambda record, where: None,
    discarded: Callable[[Record, str], None] = lambda record, why: None,
) -> Record:
    """Run `cell` to its last task, keeping the run in `folder`, which no other process may use.

    A finished run of the cell in `folder` is returned as it is, unless `overwrite` discards it.
    An unfinished run in `folder` goes on after its last task, to the bits of a run never
    interrupted (`resumed`, with where it goes on). Where files of that task are damaged it goes on
    after the task before; where those are too it is `discarded`, and the cell runs from its first
    task. A run of other versions, hardware or data is refused. Every `save_every` minutes (0:
    never) it is kept how far a task has come, at the next end of an epoch, if the learner can.

    Raises DivergenceError, DataError or FileError (FolderInUse, Unreadable); a checkpoint of the
    tasks before stays whole.
    """
    snapshots = Snapshots(save_every)
    with held(folder):
        if overwrite:
            clear(folder)
        found = newest_record(folder)
        if found and found.finished and not differences(found.configuration, cell.as_json()):
            drop_before(folder)  # where the run was killed before it could
            return found
        (folder / ERROR_NAME).unlink(missing_ok=True)

        def new_learner() -> Learner:
            _seed_everything(cell.seed)
            return build(setup_of(cell, scenario, progress, snapshots))

        learner = new_learner()
        record, probe = _new_record(cell, scenario, threads), Probe()
        unfinished, why = unfinished_record(folder), None
        if unfinished is not None:
            if isinstance(learner, Resumable):
                _check_surroundings(unfinished, record, folder)
        if unfinished is not None and unfinished.accuracy:
            try:
                record, probe, why = _resume(learner, folder)
            except Unreadable:  # what it holds may be whole
                raise
            except FileError as error:
                discarded(unfinished, str(error))
                learner = new_learner()
        try:
            snapshots.pending = find_snapshot(folder, record_bytes(record))
        except Unreadable:
            raise
        except FileError as error:
            why = str(error)
        if record.accuracy or snapshots.pending:
            resumed(record, _where(record, snapshots.pending, why))
        else:
            if why is not None:
                discarded(record, why)
            clear(folder)
            write_record(record, folder / FILE_NAME)
        return _stream(learner, scenario, folder, record, probe, snapshots, task_ended)


def _where(record: Record, snapshot: Snapshot | None, why: str | None) -> str:
    """Where a run goes on, in a few words; `why` it is not further on."""
    done, tasks = len(record.accuracy), len(record.tasks)
    if snapshot is not None:
        return f"after epoch {snapshot.epoch} of task {done + 1}/{tasks}"
    after = f"after task {done}/{tasks}"
    return after if why is None else f"only {after} ({why})"


def _stream(
    learner: Learner,
    scenario: Scenario,
    folder: Path,
    record: Record,
    probe: Probe,
    snapshots: Snapshots,
    task_ended: Callable[[Record], None],
) -> Record:
    """Train and test on the tasks that `record` does not hold yet; the finished record."""
    done, earlier = len(record.accuracy), record.growth_events
    stream = scenario.benchmark().train_stream
    if len(stream) != len(scenario.tasks):
        raise DataError(
            f"the stream of {scenario.name} has {len(stream)} experiences for "
            f"{len(scenario.tasks)} tasks: make the scenario again"
        )
    seconds = dict(record.seconds)
    with Events(folder / EVENTS_FOLDER, len(earlier)) as events:
        if isinstance(learner, Observed):
            learner.observe(events)
        for i, experience in enumerate(stream):
            if i < done:
                continue
            content = record_bytes(record)
            snapshots.keep = partial(write_snapshot, folder, record=content)
            before = dict(learner.seconds)
            learner.train(experience)
            # a learner's evaluation below is the benchmark's time, and would count twice
            for phase, total in learner.seconds.items():
                seconds[phase] = seconds.get(phase, 0.0) + total - before.get(phase, 0.0)
            started = time.perf_counter()
            unchanged = _probe(learner, scenario, probe)
            if i == len(stream) - 1:  # what a run ends with is measured, task by task
                unchanged = set()
            test_row = _row(learner, scenario, i, "test", record.accuracy, unchanged)
            validation_row = _row(
                learner, scenario, i, "validation", record.validation_accuracy, unchanged
            )
            class_row = _class_row(record, learner, scenario, i)
            seconds["test"] = seconds.get("test", 0.0) + time.perf_counter() - started
            record = _after_task(record, learner, test_row, validation_row, seconds, earlier)
            record = replace(record, class_incremental=class_row)
            if record.finished and "evaluate_on" not in record.configuration:  # on test images
                record = replace(record, latency=measure(learner, scenario))
            if learner.tasks_trained:
                write_checkpoint(folder, learner.save, probe.content(), record_bytes(record))
            else:
                write_record(record, folder / FILE_NAME)
            if record.finished:
                drop_before(folder)
            # behind the checkpoint: a disk that has room for no more costs pictures, not a task
            events.task(
                i,
                test_row,
                [task.name for task in scenario.tasks],
                record.parameters,
                record.widths,
                record.growth_events,
                learner.readings() if isinstance(learner, Drawn) else (),
            )
            task_ended(record)
    return record


def _check_surroundings(found: Record, fresh: Record, folder: Path) -> None:
    """Raise FileError where an unfinished run could not go on to the same bits."""
    for part in ("configuration", "versions", "hardware", "data"):
        for name, (was, now) in differences(getattr(found, part), getattr(fresh, part)).items():
            raise FileError(
                f"{folder} holds an unfinished run with {part} {name} {was!r}, not {now!r}: go on "
                "with that, or discard it with --overwrite"
            )


def _resume(learner: Learner, folder: Path) -> tuple[Record, Probe, str | None]:
    """Let `learner` take up the newest whole checkpoint in `folder`: its record and its probe.

    Also why a newer one was not taken, if there is one. Raises FileError where none can be.
    """
    if not isinstance(learner, Resumable):
        raise FileError("this strategy does not keep all that it would need")
    found = find_checkpoint(folder)
    record, probe = read_record(found.record), read_probe(found.probe)
    learner.resume(found.model, len(record.accuracy))
    settle(folder, found)
    return record, probe, found.instead


def _new_record(cell: Cell, scenario: Scenario, threads: int) -> Record:
    return Record(
        configuration=cell.as_json(),
        versions=environment.versions(),
        hardware=environment.hardware(threads, cell.device),
        data=fingerprint(scenario),
        seed=cell.seed,
        tasks=[task.name for task in scenario.tasks],
        finished=False,
        accuracy=[],
        validation_accuracy=[],
        average_accuracy=None,
        average_forgetting=None,
        parameters=0,
        bytes=0,
        flops=[],
        parameters_by_task=[],
        bytes_by_task=[],
        seconds={},
        growth_events=[],
        widths={},
    )


def _after_task(
    record: Record,
    learner: Learner,
    test_row: list[float | None],
    validation_row: list[float | None],
    seconds: Mapping[str, float],
    earlier: Sequence[Mapping[str, Any]],
) -> Record:
    """`earlier`: growth events from before the run was resumed."""
    accuracy = [*record.accuracy, test_row]
    floats, size = learner.floats(), learner.bytes()
    return replace(
        record,
        finished=len(accuracy) == len(record.tasks),
        accuracy=accuracy,
        validation_accuracy=[*record.validation_accuracy, validation_row],
        average_accuracy=average_accuracy(accuracy),
        average_forgetting=average_forgetting(accuracy),
        parameters=floats,
        bytes=size,
        flops=[learner.flops(task) for task in range(learner.tasks_trained)],
        parameters_by_task=[*record.parameters_by_task, floats],
        bytes_by_task=[*record.bytes_by_task, size],
        seconds=dict(seconds),
        growth_events=[*earlier, *(dict(event) for event in learner.growth_events)],
        widths=learner.widths(),
        reuse=learner.reuse() if isinstance(learner, Reusing) else [],
    )


def _row(
    learner: Learner,
    scenario: Scenario,
    i: int,
    split: str,
    earlier: Sequence[Sequence[float | None]],
    unchanged: Set[int],
) -> list[float | None]:
    """Accuracy on each task so far; that after the task before where a task is `unchanged`."""
    row: list[float | None] = [None] * len(scenario.tasks)
    for j in range(min(i + 1, learner.tasks_trained)):
        if j in unchanged:
            row[j] = earlier[-1][j]
        else:
            row[j] = accuracy_on(learner, getattr(scenario.tasks[j], split))
    return row


def _class_row(record: Record, learner: Learner, scenario: Scenario, i: int) -> dict[str, Any]:
    """What the record tells of class-incremental accuracy, with that after task i."""
    if not record.configuration.get("class_incremental"):
        return {}
    rule, row = class_incremental.evaluate(learner, scenario, i + 1)
    return {"rule": rule, "accuracy": [*record.class_incremental.get("accuracy", []), row]}


def accuracy_on(learner: Learner, images: Images) -> float | None:
    """Fraction of `images` that the learner puts in the right class; None if there are none.

    Raises DivergenceError if a logit is not finite.
    """
    if len(images.labels) == 0:
        return None
    logits = learner.logits(images.task, images.images)
    if not torch.isfinite(logits).all():
        raise DivergenceError(
            f"the logits of task {images.task} are not finite: lower --learning-rate"
        )
    return int((logits.argmax(dim=1) == images.labels).sum()) / len(images.labels)


def _probe(learner: Learner, scenario: Scenario, probe: Probe) -> set[int]:
    """Ask for the probe's logits; the tasks whose are, bit for bit, as after the task before."""
    unchanged = set()
    for j in range(learner.tasks_trained):
        task = scenario.tasks[j]
        if j not in probe.images:
            # an empty validation split (--validation 0) leaves the training images to probe with
            source = task.validation if len(task.validation.labels) else task.train
            probe.images[j] = source.images[spread(len(source.labels))].clone()
        logits = learner.logits(j, probe.images[j]).cpu()
        if j in probe.last and torch.equal(logits, probe.last[j]):
            unchanged.add(j)
        probe.last[j] = logits
        probe.ended.setdefault(j, logits.clone())
    return unchanged


def fingerprint(scenario: Scenario) -> Mapping[str, Any]:
    """What the images and labels of a scenario are known by: their digest and their numbers."""
    digest = hashlib.sha256()
    images = {"train": 0, "validation": 0, "test": 0}
    for task in scenario.tasks:
        for split in images:
            part: Images = getattr(task, split)
            images[split] += len(part.labels)
            for tensor in (part.images, part.labels):
                digest.update(tensor.contiguous().numpy().data)
    return {"sha256": digest.hexdigest(), "images": images}


def _seed_everything(seed: int) -> None:
    """Seed the global generators too: Avalanche's plugins draw from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
