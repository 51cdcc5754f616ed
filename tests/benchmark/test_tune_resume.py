"""`firefly-cl tune` goes on from the trials that there are, if they are of the same search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_fakes import InThisProcess
from tune_fakes import GRID, OUT, Tune, told, trials, tuned

from firefly_cl.benchmark.executors import Hear, News
from firefly_cl.benchmark.failures import Failure, write_failure
from firefly_cl.benchmark.records import read_record
from firefly_cl.errors import DataError
from firefly_cl.scenarios import SCENARIOS


def test_the_same_search_again_finds_the_same(tune: Tune) -> None:
    tune("--trials", "3", "--out", "a")
    tune("--trials", "3", "--out", "b")
    assert told(Path("a/fake")) == told(Path("b/fake"))
    tune("--trials", "2", "--out", "c", "--sampler-seed", "1")
    first, other = (told(Path(out, "fake"))["sprung"][:2] for out in "ac")
    assert first[0] == other[0] and first[1] != other[1]


@pytest.mark.parametrize("stop_after", [0, 1, 4, 7])
def test_a_stopped_search_goes_on(
    stop_after: int, tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    tune("--out", "whole")
    capsys.readouterr()
    assert tune(executor=InThisProcess(stop_after))[0] == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        f"error: interrupted with {stop_after} of 8 trials made, kept in tuning: "
        "the same command does the rest"
    )
    assert sum(map(len, told().values())) == stop_after
    code, jobs = tune()
    assert code == 0 and len(jobs) == 8 - stop_after  # no trial is run twice
    assert told() == told(Path("whole/fake"))
    assert tune() == (0, [])


def test_a_trial_is_made_when_all_its_seeds_have_ended(tune: Tune) -> None:
    assert tune("--seeds", "0,1", executor=InThisProcess(3))[0] == 130
    assert {name: len(found) for name, found in told().items()} == {"sprung": 1, "plain": 0}
    code, jobs = tune("--seeds", "0,1")
    assert code == 0 and len(jobs) == 16 - 3


def test_a_truncated_trial_runs_again(tune: Tune, capsys: pytest.CaptureFixture[str]) -> None:
    tune()
    whole, text = told(), tuned().read_text()
    path = OUT / "sprung" / "trial-002.json"
    for length in (0, 50, len(path.read_bytes()) - 3):
        path.write_bytes(path.read_bytes()[:length])
        capsys.readouterr()
        code, jobs = tune()
        assert code == 0 and len(jobs) == 1
        assert f"{path} is damaged: this trial runs again" in capsys.readouterr().err
        assert told() == whole and tuned().read_text() == text


@pytest.mark.parametrize(
    ("key", "value"),
    [("settings", {}), ("settings", {"options.kind": None}), ("score", "1"), ("number", 1)],
)
def test_a_damaged_trial_runs_again(key: str, value: Any, tune: Tune) -> None:
    tune("--trials", "1")
    whole, path = told(), OUT / "plain" / "trial-000.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), key: value}))
    code, jobs = tune("--trials", "1")
    assert code == 0 and len(jobs) == 1 and told() == whole


def test_a_trial_of_a_newer_schema_is_refused(
    tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    tune("--trials", "1")
    path = OUT / "plain" / "trial-000.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "schema": 2}))
    capsys.readouterr()
    assert tune("--trials", "1") == (2, [])
    assert "schema 2, newer than 1" in capsys.readouterr().err


def test_runs_of_a_recorded_trial_are_removed(tune: Tune) -> None:
    tune("--trials", "1")
    left = OUT / "plain" / "trial-000" / "seed0" / "model"  # killed while it removed them
    left.mkdir(parents=True)
    assert tune("--trials", "1") == (0, [])
    assert not (OUT / "plain" / "trial-000").exists()


def test_a_trial_that_was_cut_off_goes_on_after_its_last_task(tune: Tune) -> None:
    grid = GRID + 'options = { stop = "1" }\n'  # the learner stops once, in its second task
    assert tune("--trials", "1", grid=grid)[0] == 130
    assert len(read_record(OUT / "plain/trial-000/seed0").accuracy) == 1
    code, jobs = tune("--trials", "1", grid=grid)
    assert code == 0 and [job.cell.strategy for job in jobs] == ["plain"]
    assert jobs[0].threads == 1
    assert [trial.score for trial in trials("plain")] == [1.0]


def test_more_trials_go_on_from_those_there_are(tune: Tune) -> None:
    tune("--trials", "2")
    first = told()
    _, jobs = tune()
    assert len(jobs) == 4
    assert {strategy: found[:2] for strategy, found in told().items()} == first


class LosesOne(InThisProcess):
    """An executor one of whose jobs is killed; where `full`, the disk has no room to tell."""

    full = False

    def run(self, jobs: Any, hear: Hear) -> None:
        for job in jobs:
            if job.cell.strategy == "plain" and len(self.jobs) >= 3:
                job.folder.mkdir(parents=True, exist_ok=True)
                if not self.full:
                    write_failure(job.folder, Failure(job.cell.as_json(), "killed by SIGKILL", ""))
                hear(job, News("failed", "killed by SIGKILL"))
            else:
                super().run([job], hear)


@pytest.mark.parametrize("full", [False, True])
def test_what_settings_are_not_to_blame_for_is_not_a_trial(
    full: bool, tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    executor = LosesOne()
    executor.full = full
    code, _ = tune(executor=executor)
    err = capsys.readouterr().err
    assert code == 1
    assert err.splitlines()[-1] == "error: tuning/fake/plain/trial-001/seed0: killed by SIGKILL"
    assert len(trials("plain")) == 1 and len(trials()) == 4  # the other strategy goes on
    assert not tuned().exists()  # the budgets are not the same yet
    assert tune()[0] == 0 and len(trials("plain")) == 4


def test_trials_of_another_search_are_refused_and_kept(
    tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    tune("--trials", "2")
    before = {path: path.read_bytes() for path in Path("tuning").rglob("*.json")}
    capsys.readouterr()
    for arguments, grid, name in (
        (("--seeds", "1"), GRID, "seeds [0], not [1]"),
        (("--tasks", "3"), GRID, "configuration.tasks 2, not 3"),
        (("--sampler-seed", "4"), GRID, "sampler_seed 0, not 4"),
        ((), GRID.replace("epochs = 2", "epochs = 3"), "configuration.recipe.epochs 2, not 3"),
    ):
        assert tune("--trials", "2", *arguments, grid=grid) == (2, [])
        err = capsys.readouterr().err
        assert name in err and "--overwrite" in err and err.count("\n") == 1
        assert {path: path.read_bytes() for path in Path("tuning").rglob("*.json")} == before
    code, jobs = tune("--trials", "2", "--seeds", "1", "--overwrite")
    assert code == 0 and len(jobs) == 4
    assert tune("--trials", "2", "--seeds", "1", "--overwrite") == (0, [])


def test_trials_on_other_images_are_refused_and_kept(
    tune: Tune, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fake scenario has other images for every seed: here, whatever seed is asked for."""
    given = ("--data-dir", "data", "--trials", "2", "--seeds", "0,1")
    Path("data").mkdir()
    tune(*given)
    before, build = told(), SCENARIOS.get("fake")
    assert all(data["images"]["train"] for trial in trials() for data in trial.data)
    assert tune(*given) == (0, [])
    with monkeypatch.context() as patch:
        patch.setitem(
            SCENARIOS._objects,
            "fake",
            lambda options: build(replace(options, seed=options.seed + 9)),
        )
        capsys.readouterr()
        for more in ((), ("--trials", "3"), ("--overwrite",)):
            assert tune(*given, *more) == (2, [])
            err = capsys.readouterr().err
            assert f"{OUT / 'sprung'} holds a run on other images than those in data" in err
    assert told() == before


def test_nothing_is_discarded_before_all_is_checked(
    tune: Tune, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tune("--trials", "1")
    before = told()

    def build(options: Any) -> Any:
        raise DataError("no images: make some")

    monkeypatch.setitem(SCENARIOS._objects, "fake", build)
    capsys.readouterr()
    assert tune("--trials", "1", "--seeds", "1", "--overwrite") == (2, [])
    assert capsys.readouterr().err == "error: no images: make some\n"
    assert told() == before
