"""`run`, `grow` and `prune` with several workers: the same runs as one after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_fakes import InThisProcess, ResumableFake, install, scenario

from firefly_cl import cli
from firefly_cl.benchmark import environment, placement
from firefly_cl.benchmark.executors import Job
from firefly_cl.benchmark.records import read_record
from firefly_cl.continual import STRATEGIES
from firefly_cl.errors import ConfigurationError
from firefly_cl.scenarios import SCENARIOS


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, other=ResumableFake)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs both strategies with two seeds; gives the exit code and the jobs that were run."""

    def run(*arguments: str, stop_after: int | None = None) -> tuple[int, list[Job]]:
        executor = InThisProcess(stop_after)
        command = ["run", "fake", "--strategy", "fake,other", "--seeds", "0,1", "--epochs", "2"]
        with monkeypatch.context() as patch:
            patch.setattr(placement, "LocalProcesses", lambda *a: executor)
            code = cli.execute(cli._parse([*command, "--workers", "2", *arguments]))
        return code, executor.jobs

    return run


def test_all_is_run_and_compared(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, jobs = run("--json")
    out, err = capsys.readouterr()
    assert code == 0 and len(jobs) == 4
    assert "fake, 3 tasks" in out and "[4/4] other seed 1: accuracy 100.0 %" in err
    runs = json.loads(out.splitlines()[-1])["runs"]
    assert {(r["strategy"], r["seed"], r["skipped"]) for r in runs} == {
        (strategy, seed, False) for strategy in ("fake", "other") for seed in (0, 1)
    }
    assert read_record(Path("runs/fake/other-seed1")).finished


def test_what_is_finished_is_kept_unless_discarded(run: Any) -> None:
    run("--seeds", "0")
    code, jobs = run()
    assert code == 0 and [job.cell.seed for job in jobs] == [1, 1]
    code, jobs = run()
    assert code == 0 and not jobs
    code, jobs = run("--overwrite")
    assert code == 0 and len(jobs) == 4


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_finished_run_on_other_images_is_told(
    workers: str, run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    (data := Path("data")).mkdir()
    assert run("--workers", workers, "--data-dir", str(data))[0] == 0
    monkeypatch.setitem(SCENARIOS._objects, "fake", lambda options: scenario(seed=1))
    assert run("--workers", workers)[0] == 0  # nobody named any images
    capsys.readouterr()
    assert run("--workers", workers, "--data-dir", str(data)) == (2, [])
    assert "holds a run on other images than those in data" in capsys.readouterr().err
    monkeypatch.setenv("FIREFLY_DATA", str(data))
    assert run("--workers", workers) == (2, [])


def test_nothing_is_discarded_for_runs_that_cannot_begin(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(setup: Any) -> Any:
        raise ConfigurationError("unknown strategy option 'x'")

    run()
    before = Path("runs/fake/fake-seed0/record.json").read_bytes()
    monkeypatch.setitem(STRATEGIES._objects, "other", refuse)
    assert run("--overwrite") == (2, [])
    assert "unknown strategy option" in capsys.readouterr().err
    assert Path("runs/fake/fake-seed0/record.json").read_bytes() == before


def test_an_error_does_not_stop_the_others(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, jobs = run("--option", "fake.diverge=1", "--json")
    out, err = capsys.readouterr()
    assert code == 2 and len(jobs) == 4
    assert "error: runs/fake/fake-seed1: the loss became NaN" in err
    runs = json.loads(out.splitlines()[-1])["runs"]
    assert [r["error"] is None for r in sorted(runs, key=lambda r: r["strategy"])] == [
        False,
        False,
        True,
        True,
    ]


def test_ctrl_c_tells_what_is_done(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = run(stop_after=1)
    assert code == 130
    assert "error: interrupted after 1 finished runs, kept in runs" in capsys.readouterr().err
    code, jobs = run()
    assert code == 0 and len(jobs) == 3


def test_a_begun_run_keeps_its_threads(run: Any) -> None:
    code, _ = run("--strategy", "other", "--option", "other.stop=2")
    assert code == 130
    _, jobs = run("--strategy", "other", "--option", "other.stop=2")
    assert {job.cell.seed: job.threads for job in jobs} == {0: 1, 1: None}
    _, jobs = run("--strategy", "other", "--threads", "3", "--overwrite")
    assert {job.threads for job in jobs} == {3}


def test_workers_share_all_cores(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    made = InThisProcess()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(environment, "physical_cores", lambda: 8)
    monkeypatch.setattr(placement, "LocalProcesses", lambda *a: asked.append(a) or made)
    arguments = ["run", "fake", "--strategy", "fake,other", "--epochs", "2", "--workers", "3"]
    assert cli.execute(cli._parse(arguments)) == 0
    assert asked == [(2, 8, 2)]  # as many workers as runs, cores, retries


def test_workers_may_fetch_data_too(run: Any) -> None:
    assert {job.download for job in run("--download")[1]} == {True}
    assert {job.download for job in run("--overwrite")[1]} == {False}


@pytest.mark.parametrize("option", ["--workers", "--threads"])
def test_none_at_all_is_an_error(option: str, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, jobs = run(option, "0")
    assert code == 2 and not jobs
    assert f"error: {option} is 0: give 1 or more" in capsys.readouterr().err


def test_processes_grow_what_one_process_grows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["grow", "--criterion", "uniform,random", "--rounds", "1", "--epochs", "1"]
    for workers, out in (("1", "one"), ("2", "two")):
        arguments = [*command, "--threads", "1", "--workers", workers, "--out", out]
        assert cli.execute(cli._parse(arguments)) == 0
        assert "uniform seed 0: accuracy" in capsys.readouterr().err
    for criterion in ("uniform", "random"):
        one, two = (
            read_record(tmp_path / out / criterion / "split-digits" / "firefly-seed0")
            for out in ("one", "two")
        )
        assert one.accuracy == two.accuracy and one.widths == two.widths
        assert one.configuration == two.configuration
