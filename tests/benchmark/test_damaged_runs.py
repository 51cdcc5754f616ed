"""A run whose files are damaged or of another run goes on from what is whole, or says so."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import assert_same_run
from stopped_runs import BASELINE, GROWING, LAST_WRITE, Killed, digits, interrupted, run, stop

from firefly_cl.benchmark import cell as cells
from firefly_cl.benchmark import checkpoints
from firefly_cl.benchmark.folders import MODEL_FOLDER
from firefly_cl.benchmark.records import read_record
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Resumable
from firefly_cl.errors import FileError, Unreadable

torch.set_num_threads(1)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = [
    (flipped, "model/model.safetensors", "damaged (its checksum differs)"),
    (halved, "model/model.safetensors", "damaged (its checksum differs)"),
    (Path.unlink, "model/model.safetensors", "is missing"),
    (halved, "model/model.json", "damaged (its checksum differs)"),
    (halved, "model/checksums.json", "is damaged"),
    (halved, "probe.safetensors", "damaged (its checksum differs)"),
    (Path.unlink, "probe.safetensors", "is missing"),
    (halved, "record.json", "damaged (its checksum differs)"),
    (Path.unlink, "record.json", "missing"),
]


@pytest.mark.parametrize(("damage", "file", "why"), DAMAGES[:-2:3])  # all of them: see below
def test_a_damaged_run_starts_again(
    damage: Callable[[Path], Any], file: str, why: str, one_task: Path, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(one_task, tmp_path / "run")
    damage(folder / file)
    (said,) = run(folder)
    assert why in said and file in said and "\n" not in said
    assert_same_run(whole, folder)


@pytest.mark.parametrize(("damage", "file", "why"), DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    damage: Callable[[Path], Any], file: str, why: str, two_tasks: Path, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(two_tasks, tmp_path / "run")
    damage(folder / file)
    (said,) = run(folder)
    assert said.startswith("continues only after task 1/3 (") and "\n" not in said
    assert why in said and file in said
    assert_same_run(whole, folder)


@pytest.mark.parametrize("file", ["checksums.json", "model.json", "model.safetensors"])
@pytest.mark.parametrize("checkpoint", ["one_task", "two_tasks"])
def test_what_cannot_be_read_just_now_is_not_discarded(
    checkpoint: str,
    file: str,
    request: pytest.FixtureRequest,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(request.getfixturevalue(checkpoint), tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path == folder / "model" / file:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", failing)
        with pytest.raises(Unreadable, match=f"{file} .*Input/output error.*check"):
            run(folder)
    for path, content in before.items():
        assert path.read_bytes() == content
    run(folder)
    assert_same_run(whole, folder)


def test_falling_back_may_be_cut_off(two_tasks: Path, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two_tasks, tmp_path / "run")
    halved(folder / "model/model.safetensors")
    interrupted(folder, checkpoints, "_remove", 1)  # the record is the older one already
    assert run(folder) == ["continues after task 1/3"]
    assert_same_run(whole, folder)


def test_both_checkpoints_damaged_start_again(two_tasks: Path, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two_tasks, tmp_path / "run")
    for name in ("model", "model.before"):
        halved(folder / name / "model.safetensors")
    (said,) = run(folder)
    assert str(folder / "model/model.safetensors") in said
    assert_same_run(whole, folder)


def test_two_checkpoints_are_kept_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    original = checkpoints.write_atomic

    def counting(path: Path, content: bytes) -> None:
        original(path, content)
        held.append(len(list(tmp_path.glob("model*"))))

    monkeypatch.setattr(checkpoints, "write_atomic", counting)
    run(tmp_path)
    assert len(held) == LAST_WRITE[3] and max(held) == 2
    assert [path.name for path in tmp_path.glob("*.before")] == []


def test_a_new_model_that_was_cut_off_leaves_the_one_before(whole: Path, tmp_path: Path) -> None:
    interrupted(tmp_path, checkpoints, "write_atomic", 7)  # the record does not tell of it yet
    halved(tmp_path / "model/model.safetensors")
    assert run(tmp_path) == ["continues after task 1/3"]
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("strategy", ["firefly", "individual", "naive", "ewc", "replay", "packnet"])
def test_a_model_of_another_number_of_tasks_is_refused(strategy: str, tmp_path: Path) -> None:
    cell = replace(GROWING, strategy=strategy, options={}, budget=None, tasks=2)
    run(tmp_path, cell)
    setup = cells.setup_of(cell, digits(cell), lambda progress: None)
    learner = STRATEGIES.get(strategy)(setup)
    assert isinstance(learner, Resumable)
    for tasks in (1, 3):
        with pytest.raises(FileError, match=f"{tasks}$"):
            learner.resume(tmp_path / MODEL_FOLDER, tasks)
    assert learner.tasks_trained == 0
    learner.resume(tmp_path / MODEL_FOLDER, 2)
    assert learner.tasks_trained == 2
    assert learner.bytes() == read_record(tmp_path).bytes


@pytest.mark.parametrize("damage", [flipped, halved, Path.unlink])
def test_a_damaged_memory_is_told(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    cell = replace(BASELINE, strategy="replay", options={"mem_size": "40"}, tasks=2)
    run(tmp_path / "whole", cell)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        stop(patch, cells, "write_checkpoint", 1, after=True)
        run(tmp_path / "run", cell)
    (memory,) = (tmp_path / "run" / MODEL_FOLDER).glob("memory-*")
    damage(memory)
    (said,) = run(tmp_path / "run", cell)
    assert f"{memory}" in said and ("missing" if damage is Path.unlink else "checksum") in said
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_memory_of_another_strategy_is_refused(tmp_path: Path) -> None:
    run(tmp_path, replace(BASELINE, strategy="ewc", tasks=2))
    cell = replace(BASELINE, strategy="replay", tasks=2)
    learner = STRATEGIES.get("replay")(cells.setup_of(cell, digits(cell), lambda progress: None))
    assert isinstance(learner, Resumable)
    with pytest.raises(FileError, match="of another strategy"):
        learner.resume(tmp_path / MODEL_FOLDER, 2)
