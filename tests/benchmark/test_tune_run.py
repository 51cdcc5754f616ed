"""`firefly-cl tune` from arguments to exit code, with learners that take no time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_fakes import FakeLearner, InThisProcess, ResumableFake, Sealed, scenario
from torch import Tensor

from firefly_cl import cli
from firefly_cl.benchmark import placement
from firefly_cl.benchmark.executors import Hear, Job, News
from firefly_cl.benchmark.failures import Failure, write_failure
from firefly_cl.benchmark.grid import read_grid
from firefly_cl.benchmark.records import read_record
from firefly_cl.benchmark.trials import Trial, read_trial
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.errors import DataError, DivergenceError
from firefly_cl.scenarios import SCENARIOS
from firefly_cl.search_space import Choice, Range, searched

GRID = """
seeds = [3, 4]
epochs = 2
[scenarios.fake]
[strategies.sprung]
[strategies.plain]
"""
OUT = Path("tuning/fake")


@dataclass(frozen=True)
class SprungOptions:
    strength: float = searched(1.0, Range(0.1, 10.0, log=True))
    kind: str = searched("soft", Choice(("soft", "hard")))
    memory: int = 5


class Sprung(FakeLearner):
    """Right for a share of the images of each kind: the nearer strength is to 3, the larger."""

    def __init__(self, setup: Setup) -> None:
        self.options = read_options(setup.options, SprungOptions)
        super().__init__(replace(setup, options={}))

    def train(self, experience: Any) -> None:
        if self.options.strength > 5:
            raise DivergenceError("the loss became NaN")
        super().train(experience)

    def logits(self, task: int, images: Tensor) -> Tensor:
        right = super().logits(task, images)
        quality = min(self.options.strength, 3.0) / 3 - 0.2 * (self.options.kind == "hard")
        right[round(len(right) * max(quality, 0.0)) :] *= -1
        return right


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def build(options: Any) -> Any:
        found = scenario(options.first_tasks or 3, options.seed)
        return replace(found, tasks=tuple(replace(t, test=Sealed()) for t in found.tasks))  # type: ignore[arg-type]

    monkeypatch.setitem(SCENARIOS._objects, "fake", build)
    monkeypatch.setitem(STRATEGIES._objects, "sprung", Sprung)
    monkeypatch.setitem(STRATEGIES._options, "sprung", SprungOptions)
    monkeypatch.setitem(STRATEGIES._objects, "plain", ResumableFake)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


Tune = Callable[..., tuple[int, list[Job]]]


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Tune:
    """Runs the command on a grid; gives the exit code and the jobs that were run."""

    def run(
        *arguments: str, grid: str = GRID, executor: InThisProcess | None = None
    ) -> tuple[int, list[Job]]:
        Path("grid.toml").write_text(grid)
        executor = executor or InThisProcess()
        with monkeypatch.context() as patch:
            patch.setattr(placement, "LocalProcesses", lambda *a: executor)
            command = ["tune", "grid.toml", "--trials", "4", "--tasks", "2", *arguments]
            code = cli.execute(cli._parse(command))
        return code, executor.jobs

    return run


def trials(strategy: str = "sprung", out: Path = OUT) -> list[Trial]:
    found = [read_trial(path) for path in sorted((out / strategy).glob("*.json"))]
    return [trial for trial in found if trial is not None]


def told(out: Path = OUT) -> dict[str, list[Any]]:
    """What a search has found, without times and versions."""
    return {
        strategy: [(t.number, t.settings, t.scores, t.error) for t in trials(strategy, out)]
        for strategy in ("sprung", "plain")
    }


# --- the search -------------------------------------------------------------------------------


def test_every_strategy_has_the_same_trials_and_none_reads_a_test_image(tune: Tune) -> None:
    code, jobs = tune("--seeds", "0,7")
    assert code == 0
    for strategy in ("sprung", "plain"):
        assert [trial.number for trial in trials(strategy)] == list(range(4))
        cells = [job.cell for job in jobs if job.cell.strategy == strategy]
        assert [cell.seed for cell in cells] == [0, 7] * 4
        assert {(cell.tasks, cell.evaluate_on) for cell in cells} == {(2, "validation")}
        assert {cell.recipe["epochs"] for cell in cells} == {2}
    # round by round, so that a search that is stopped has been fair so far
    assert [job.cell.strategy for job in jobs] == ["sprung", "sprung", "plain", "plain"] * 4
    assert not list(Path("tuning").rglob("record.json"))  # of a trial its own file is left


def test_a_test_image_that_is_read_would_be_noticed(tune: Tune) -> None:
    tune()
    assert cli.execute(cli._parse(["run", "fake", "--strategy", "plain", "--out", "o"])) == 70


def test_a_trial_tells_what_was_tried_and_how_good_it_was(tune: Tune) -> None:
    tune("--seeds", "0,7")
    for trial in trials():
        strength, kind = trial.settings["options.strength"], trial.settings["options.kind"]
        if float(strength) > 5:
            continue
        # of ten validation images of each task
        right = round(10 * max(min(float(strength), 3) / 3 - 0.2 * (kind == "hard"), 0)) / 10
        assert trial.scores == [right, right] and trial.score == right
        assert trial.seconds > 0 and trial.hardware["threads"] == 1
        assert {"torch", "optuna", "firefly_cl"} <= set(trial.versions)
        assert trial.search["seeds"] == [0, 7]
    assert trials()[0].settings == {
        "recipe.learning_rate": 0.05,
        "recipe.weight_decay": 5e-4,
        "options.strength": 1.0,
        "options.kind": "soft",
    }
    assert list(trials("plain")[3].settings) == ["recipe.learning_rate", "recipe.weight_decay"]


def test_the_settings_of_a_trial_are_those_of_its_cell(tune: Tune) -> None:
    _, jobs = tune()
    cells = [job.cell for job in jobs if job.cell.strategy == "sprung"]
    assert cells[0].options == {}  # trial 0 is the grid's own cell
    for cell, trial in zip(cells, trials(), strict=True):
        assert cell.recipe["learning_rate"] == trial.settings["recipe.learning_rate"]
        assert cell.recipe["weight_decay"] == trial.settings["recipe.weight_decay"]
        options = read_options(cell.options, SprungOptions)
        assert options.strength == trial.settings["options.strength"]
        assert options.kind == trial.settings["options.kind"] and options.memory == 5


def test_the_grids_settings_are_where_the_search_begins(tune: Tune) -> None:
    options = "options = { strength = 0.3, memory = 9 }\nlearning-rate = 0.2\n"
    _, jobs = tune(grid=GRID.replace("[strategies.plain]", options + "[strategies.plain]"))
    assert trials()[0].settings["options.strength"] == 0.3
    assert trials()[0].settings["recipe.learning_rate"] == 0.2
    cells = [job.cell for job in jobs if job.cell.strategy == "sprung"]
    assert {cell.options["memory"] for cell in cells} == {"9"}


def test_settings_that_are_kept(tune: Tune) -> None:
    _, jobs = tune("--keep", "learning-rate,kind")
    assert {job.cell.recipe["learning_rate"] for job in jobs} == {0.05}
    assert set(trials()[3].settings) == {"recipe.weight_decay", "options.strength"}


def test_divergence_is_a_recorded_trial(tune: Tune, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune("--trials", "8", "--json")[0] == 0
    failed = [trial for trial in trials() if trial.score is None]
    assert failed and all(float(t.settings["options.strength"]) > 5 for t in failed)
    assert {trial.error for trial in failed} == {"the loss became NaN"}
    assert all(float(t.settings["options.strength"]) <= 5 for t in trials() if t.score is not None)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["searches"]
    assert [search["failed"] for search in found] == [len(failed), 0]


def test_a_search_whose_trials_all_fail(tune: Tune, capsys: pytest.CaptureFixture[str]) -> None:
    grid = GRID + 'options = { diverge = "0" }\n'
    assert tune("--trials", "2", grid=grid)[0] == 1
    assert [trial.score for trial in trials("plain")] == [None, None]
    assert "All of 2 trials, 2 failed: these are the grid's own settings." in tuned().read_text()


# --- stopped and resumed ----------------------------------------------------------------------


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


# --- what is chosen ---------------------------------------------------------------------------


def tuned() -> Path:
    return Path("tuning/tuned.toml")


def test_the_chosen_settings_are_a_grid_of_the_best_trials(
    tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = "options = { strength = 0.2 }\n"
    _, jobs = tune(grid=GRID.replace("[strategies.plain]", weak + "[strategies.plain]"))
    best = max(trials(), key=lambda t: t.score or 0)
    assert best.number > 0 and (best.score or 0) > (trials()[0].score or 0)
    (tried,) = (
        job.cell
        for job in jobs
        if job.cell.strategy == "sprung" and f"trial-{best.number:03d}" in str(job.folder)
    )
    found = {(c.strategy, c.cell.seed): c.cell for c in read_grid(tuned()).cells()}
    assert found["sprung", 3] == replace(tried, seed=3, tasks=None, evaluate_on="test")
    # the first of equal trials is the best, which is the grid's own here
    own = {(c.strategy, c.cell.seed): c.cell for c in read_grid(Path("grid.toml")).cells()}
    assert set(found) == set(own) and found["plain", 4] == own["plain", 4]
    text = tuned().read_text()
    percent = [f"{100 * (t.score or 0):.1f} %" for t in (best, trials()[0])]
    assert f"# Trial {best.number} of 4 trials" in text
    assert f": {percent[0]}; the grid's own settings: {percent[1]}." in text
    assert "# 4 trials for every strategy, on the first 2 tasks, seeds 0;" in text
    assert "no test image was read" in text and "sampler seed 0" in text and "optuna" in text


def test_the_chosen_grid_runs_as_it_is(
    tune: Tune, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tune()
    monkeypatch.setitem(SCENARIOS._objects, "fake", lambda options: scenario())
    monkeypatch.setattr(placement, "LocalProcesses", lambda *a: InThisProcess())
    assert cli.execute(cli._parse(["benchmark", str(tuned())])) == 0
    assert read_record(Path("runs-tuned/fake/sprung-seed3")).finished


def test_the_table_fits_a_narrow_terminal(
    tune: Tune, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tune()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("fake, validation images")
    assert all(len(line) <= 80 for line in printed)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--trials", "0"), "--trials is 0: give 1 or more"),
        (("--tasks", "0"), "--tasks is 0: give 1 or more"),
        (("--sampler-seed", "-1"), "--sampler-seed is -1: give 0 or more"),
        (("--seeds", "a"), "--seeds has 'a'"),
        (("--keep", "strenght"), "no strategy here searches: did you mean 'strength'?"),
        (
            ("--keep", "learning_rate,weight_decay"),
            "nothing is left to search for 'plain' on 'fake': take it out of the grid",
        ),
        (("--data-dir", "nowhere"), "nowhere does not exist"),
    ],
)
def test_bad_arguments(
    arguments: tuple[str, ...], says: str, tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(*arguments) == (2, [])
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not Path("tuning").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("strategies.plain", "strategies.plane", "unknown strategy 'plane': did you mean 'plain'?"),
        ("epochs = 2", "tasks = 1", "--tasks is 2, and the grid streams 1 of 'fake': give 1"),
        ("epochs = 2", "validation = 0", "needs a --validation above 0"),
        ("scenarios.fake]", 'scenarios."../x"]\nscenario = "fake"', "cannot name a folder"),
        ("epochs = 2", "epoch = 2", "unknown key 'epoch': did you mean 'epochs'?"),
    ],
)
def test_bad_grids(
    old: str, new: str, says: str, tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(grid=GRID.replace(old, new)) == (2, [])
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not Path("tuning").exists()


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


def test_without_optuna(
    tune: Tune, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert tune() == (2, [])
    err = capsys.readouterr().err
    assert err.endswith("pip install optuna\n") and err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(
    tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("locked").mkdir(mode=0o500)
    assert tune("--out", "locked/tuning") == (2, [])
    assert "--out" in capsys.readouterr().err
