"""Nothing is lost: runs killed at random moments, or on a full disk, end with the same bits."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_fakes import ResumableFake, cell, scenario
from same_run import assert_same_run

from firefly_cl.benchmark.executors import Job, News
from firefly_cl.benchmark.folders import unfinished_record
from firefly_cl.benchmark.worker import perform
from firefly_cl.continual import STRATEGIES
from firefly_cl.scenarios import SCENARIOS

KILLS = 10
"""Of firefly, and of replay."""

SCRIPT = Path(__file__).with_name("kill_runs.py")
ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1"}


def script(*arguments: str, before: tuple[str, ...] = ()) -> Any:
    done = subprocess.run(
        [*before, sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**ENVIRON, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
def test_runs_killed_at_random_moments_end_with_the_same_bits(tmp_path: Path):
    found = script("kills", str(tmp_path), "0", str(KILLS))
    for ended in found["ended"].values():
        assert len(ended) == KILLS
        assert any(ended)  # some had something to go on from
    assert found["inside"]  # and some a snapshot inside a task
    for whole, killed in found["runs"]:
        assert_same_run(Path(whole), Path(killed))


def own_disks() -> bool:
    try:
        done = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "x", "/tmp"], capture_output=True
        )
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not own_disks(), reason="no disk of its own can be mounted")
def test_a_disk_that_is_full_again_and_again_loses_nothing(tmp_path: Path):
    found = script("disk", str(tmp_path), "16", "96", before=("unshare", "-rm"))
    *failed, last = found["told"]
    assert last["kind"] == "ended" and failed
    for told in failed:
        assert told["kind"] == "failed" and "No space left on device" in told["text"], told
        assert not told["text"].startswith("unexpected"), told
    tasks = [told["tasks"] for told in found["told"]]
    assert tasks == sorted(tasks) and 0 < len({*tasks} - {0, 3})  # also between tasks
    for whole, full in found["runs"]:
        assert_same_run(Path(whole), Path(full))


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_any_write_may_find_the_disk_full(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(SCENARIOS._objects, "fake", lambda options: scenario())
    monkeypatch.setitem(STRATEGIES._objects, "fake", ResumableFake)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    original = getattr(os, function)
    calls, room = 0, sys.maxsize

    def write(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    monkeypatch.setattr(os, function, write)

    def run(folder: Path, writes: int = sys.maxsize) -> News:
        nonlocal calls, room
        folder.mkdir(exist_ok=True)
        calls, room = 0, writes
        told: list[News] = []
        perform(Job(cell(), folder, 1), told.append)
        return told[-1]

    assert run(tmp_path / "whole").kind == "ended"
    needed = calls
    assert needed >= 7  # the record at first, then probe and record of each of three tasks
    begun = set()
    for writes in range(needed):
        folder = tmp_path / str(writes)
        last = run(folder, writes)
        if function == "replace" or last.kind == "failed":
            assert last.text.startswith("cannot write ") and "No space left" in last.text
        record = unfinished_record(folder)
        begun.add(0 if record is None else len(record.accuracy))
        assert run(folder) == News("ended", done=1.0)
        assert_same_run(tmp_path / "whole", folder)
    assert begun >= {0, 1, 2}
