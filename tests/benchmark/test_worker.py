"""What a worker does with a job, with a learner and a scenario that take no time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_fakes import FakeLearner, ResumableFake, cell, scenario

from firefly_cl.benchmark.cell import Cell
from firefly_cl.benchmark.executors import Job, News
from firefly_cl.benchmark.failures import read_failure
from firefly_cl.benchmark.records import read_record
from firefly_cl.benchmark.worker import perform
from firefly_cl.continual import STRATEGIES
from firefly_cl.errors import DataError
from firefly_cl.scenarios import SCENARIOS


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCENARIOS._objects, "fake", lambda options: scenario())
    monkeypatch.setitem(STRATEGIES._objects, "fake", FakeLearner)
    monkeypatch.setitem(STRATEGIES._objects, "resumable", ResumableFake)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def job(folder: Path, strategy: str = "fake", **options: str) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(cell(strategy=strategy, options=options), folder, 1)


def done(job: Job) -> list[News]:
    told: list[News] = []
    perform(job, told.append)
    return told


def test_a_cell_is_run_and_told_of(tmp_path: Path):
    told = done(job(tmp_path))
    assert [news.kind for news in told if news.kind != "progress"] == ["task"] * 3 + ["ended"]
    assert [round(news.done, 2) for news in told if news.kind == "task"] == [0.33, 0.67, 1.0]
    assert told[0].kind == "progress" and "epoch 1/2" in told[0].text
    assert read_record(tmp_path).finished
    assert read_record(tmp_path).hardware["threads"] == 1
    assert read_failure(tmp_path) is None


def test_joint_training_tells_no_accuracy_before_its_last_task(tmp_path: Path):
    joint = Cell("split-digits", "joint", 0, "mlp", 0.25, tasks=3, recipe={"epochs": 1})
    *waiting, last = (n.text for n in done(Job(joint, tmp_path, 1)) if n.kind == "task")
    assert waiting == [f"task {task}/3 done, no accuracy yet" for task in (1, 2)]
    assert re.fullmatch(r"task 3/3 done, average accuracy \d+\.\d %", last)


def test_a_begun_cell_goes_on(tmp_path: Path):
    stopped = job(tmp_path, "resumable", stop="2")
    with pytest.raises(KeyboardInterrupt):
        done(stopped)
    assert read_failure(tmp_path) is None  # nothing went wrong
    told = done(stopped)
    assert told[0] == News("resumed", "continues after task 2/3", 2 / 3)
    assert [news.kind for news in told][-2:] == ["task", "ended"]


def test_a_cell_that_cannot_go_on_says_so(tmp_path: Path):
    stopped = job(tmp_path, interrupt="1")
    with pytest.raises(KeyboardInterrupt):
        done(stopped)
    again = replace(stopped, cell=replace(stopped.cell, options={}))
    assert done(again)[0].text == (
        "starts again, without what was done up to task 1/3 "
        "(this strategy does not keep all that it would need)"
    )


def test_what_ends_a_cell_is_kept_and_goes_when_it_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = job(tmp_path)
    train = FakeLearner.train

    def fail(learner: FakeLearner, experience: Any) -> None:
        if experience.index == 1:
            raise RuntimeError("shapes\ndo not fit")
        train(learner, experience)

    with monkeypatch.context() as patch:
        patch.setattr(FakeLearner, "train", fail)
        assert done(broken)[-1] == News("failed", "unexpected RuntimeError: shapes do not fit")
    assert len(read_record(tmp_path).accuracy) == 1
    kept = json.loads((tmp_path / "error.json").read_text())
    assert kept["error"] == "unexpected RuntimeError: shapes do not fit"
    assert "Traceback" in kept["traceback"] and "in fail" in kept["traceback"]
    assert kept["configuration"] == broken.cell.as_json()
    assert kept["versions"]["torch"]
    assert done(broken)[-1].kind == "ended"
    assert not (tmp_path / "error.json").exists()


def test_errors_of_users_are_told_in_their_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert done(job(tmp_path, diverge="1"))[-1] == News(
        "failed", "the loss became NaN: lower --learning-rate"
    )

    def build(options: Any) -> Any:
        raise DataError("no images at x:\nmake some")

    monkeypatch.setitem(SCENARIOS._objects, "fake", build)
    assert done(job(tmp_path / "other"))[-1] == News("failed", "no images at x: make some")


def test_a_folder_that_takes_no_error_is_told_of_all_the_same(tmp_path: Path):
    broken = job(tmp_path / "a", diverge="1")
    (tmp_path / "a").rmdir()
    (tmp_path / "a").write_text("a file")
    assert [news.kind for news in done(broken)] == ["failed"]
