"""`firefly-cl run` as it comes: four strategies on split-digits, compared and verified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firefly_cl.benchmark.records import read_record

STRATEGIES = ("firefly", "naive", "ewc", "replay")
LIGHT = """
import sys
from firefly_cl import cli
try:
    cli.main(sys.argv[1:])
finally:
    assert "avalanche" not in sys.modules, "it takes seconds to load"
"""
"""The command, where it has no need of Avalanche."""


def shell(*arguments: str, cwd: Path, light: bool = False) -> subprocess.CompletedProcess[str]:
    program = ("-c", LIGHT) if light else ("-m", "firefly_cl.cli")
    return subprocess.run(
        [sys.executable, *program, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("default")
    done = shell("run", "--threads", "1", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_compares_the_four(run: tuple[Path, str]) -> None:
    *table, last = run[1].splitlines()
    assert any("split-digits, 5 tasks" in line for line in table)
    for strategy in STRATEGIES:
        assert any(line.split()[:2] == [strategy, "1"] for line in table)
    runs = {run["strategy"]: run for run in json.loads(last)["runs"]}
    assert set(runs) == set(STRATEGIES)
    # stated floors; chance is 0.5
    assert runs["firefly"]["average_accuracy"] >= 0.96
    assert runs["firefly"]["average_forgetting"] == 0
    assert runs["ewc"]["average_accuracy"] >= 0.9 and runs["replay"]["average_accuracy"] >= 0.9
    assert runs["naive"]["average_forgetting"] > 0.02
    assert runs["firefly"]["parameters"] < 5 * runs["naive"]["parameters"]


def test_takes_less_than_a_minute(run: tuple[Path, str]) -> None:
    spent = 0.0
    for strategy in STRATEGIES:
        record = read_record(run[0] / "runs" / "split-digits" / f"{strategy}-seed0")
        spent += sum(record.seconds.values())
    assert spent < 60


def test_firefly_remembers_to_the_bit(run: tuple[Path, str]) -> None:
    folder = run[0] / "runs" / "split-digits" / "firefly-seed0"
    record = read_record(folder)
    for j in range(5):
        assert len({record.accuracy[i][j] for i in range(j, 5)}) == 1
    assert record.growth_events
    done = shell("verify", str(folder), cwd=run[0], light=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "5 of 5 tasks bit-equal" in done.stdout


def test_a_finished_run_is_not_repeated(run: tuple[Path, str]) -> None:
    started = time.monotonic()
    done = shell("run", "--threads", "1", "--json", cwd=run[0], light=True)
    assert done.returncode == 0 and time.monotonic() - started < 60
    assert all(run["skipped"] for run in json.loads(done.stdout.splitlines()[-1])["runs"])
