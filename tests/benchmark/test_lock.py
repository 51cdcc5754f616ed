"""One process at a time: a second one on the same run folder is told who holds it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_fakes import ResumableFake, cell, scenario
from same_run import assert_same_run

from firefly_cl.benchmark.cell import run_cell
from firefly_cl.benchmark.executors import Job, News
from firefly_cl.benchmark.failures import Failure, read_failure, write_failure
from firefly_cl.benchmark.lock import HOLDER_NAME, held
from firefly_cl.benchmark.records import read_record
from firefly_cl.benchmark.worker import perform
from firefly_cl.continual import STRATEGIES
from firefly_cl.errors import FileError, FolderInUse
from firefly_cl.scenarios import SCENARIOS

HOLDING = """\
import sys
from pathlib import Path
from firefly_cl.benchmark.lock import held

with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """Another process that holds the folder."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def run(folder: Path, made: Any = None, **arguments: Any) -> Any:
    return run_cell(
        made or cell(),
        scenario(),
        ResumableFake,
        folder,
        threads=1,
        progress=lambda progress: None,
        **arguments,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begun(folder: Path) -> None:
    """A run that was stopped after its first task."""
    folder.mkdir(exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        run(folder, cell(options={"stop": "1"}))


def test_a_held_folder_is_told_and_stays_as_it_is(tmp_path: Path, other: Any) -> None:
    before = contents(tmp_path)
    for arguments in ({}, {"overwrite": True}):
        with pytest.raises(FolderInUse) as caught:
            run(tmp_path, **arguments)
        said = str(caught.value)
        assert f"in use by process {other.pid} on {socket.gethostname()}: wait" in said
        assert "\n" not in said
    assert contents(tmp_path) == before


def test_a_dead_process_holds_nothing(tmp_path: Path, other: Any) -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (tmp_path / HOLDER_NAME).exists()  # it could not remove it
    assert run(tmp_path).finished
    assert not (tmp_path / HOLDER_NAME).exists()


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path: Path, other: Any) -> None:
    (tmp_path / HOLDER_NAME).write_text("{")
    with pytest.raises(FolderInUse, match="in use by another process: wait"):
        run(tmp_path)


def test_a_folder_is_held_while_its_run_lasts(tmp_path: Path) -> None:
    seen: list[str] = []

    def task_ended(record: Any) -> None:
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} ") as caught:
            run(tmp_path)
        seen.append(str(caught.value))

    record = run(tmp_path, task_ended=task_ended)
    assert record.finished and len(seen) == 3
    with held(tmp_path):  # and no longer
        pass


def test_an_error_lets_go(tmp_path: Path) -> None:
    begun(tmp_path / "stopped")
    assert run(tmp_path / "stopped", cell(options={"stop": "1"})).finished
    (tmp_path / "whole").mkdir()
    run(tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped", "configuration")


def test_a_run_that_another_process_has_finished_is_kept(tmp_path: Path) -> None:
    record = run(tmp_path)
    before = contents(tmp_path)
    assert run(tmp_path) == read_record(tmp_path) and record.finished
    assert contents(tmp_path) == before


def test_a_worker_leaves_no_error_in_a_held_folder(
    tmp_path: Path, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCENARIOS._objects, "fake", lambda options: scenario())
    monkeypatch.setitem(STRATEGIES._objects, "fake", ResumableFake)
    before = contents(tmp_path)
    told: list[News] = []
    perform(Job(cell(), tmp_path, 1), told.append)
    (last,) = told
    assert last.kind == "failed" and f"in use by process {other.pid}" in last.text
    with pytest.raises(FolderInUse):
        write_failure(tmp_path, Failure(cell().as_json(), "it failed", "..."))
    assert contents(tmp_path) == before and read_failure(tmp_path) is None


def test_a_folder_that_cannot_be_locked_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FileError, match=r"cannot write .*\.lock \(.*\): free space or choose"):
        with held(tmp_path / "file"):
            pass
