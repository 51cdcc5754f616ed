"""`firefly-cl tune` searches alike for every strategy and chooses the best trials."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_fakes import InThisProcess, scenario
from tune_fakes import GRID, SprungOptions, Tune, trials, tuned

from firefly_cl import cli
from firefly_cl.benchmark import placement
from firefly_cl.benchmark.grid import read_grid
from firefly_cl.benchmark.records import read_record
from firefly_cl.continual.learner import read_options
from firefly_cl.scenarios import SCENARIOS


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
