"""A cell: what is recorded when, what is skipped, what is refused, what a crash leaves."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_fakes import FakeLearner, cell, load, scenario

from firefly_cl.benchmark.cell import accuracy_on, run_cell
from firefly_cl.benchmark.folders import check_writable, clear, finished_record
from firefly_cl.benchmark.probe import IMAGES_PER_TASK, read_probe, spread
from firefly_cl.benchmark.records import read_record
from firefly_cl.benchmark.report import summaries
from firefly_cl.benchmark.verify import verify
from firefly_cl.continual.learner import Setup
from firefly_cl.errors import DataError, DivergenceError, FileError
from firefly_cl.scenarios import Images

torch.set_num_threads(1)


def run(folder: Path, made: Any = None, stream: Any = None, **options: str) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return run_cell(
        made or cell(options=options),
        stream or scenario(),
        FakeLearner,
        folder,
        threads=1,
        progress=lambda progress: None,
    )


def test_a_perfect_learner_is_recorded_as_one(tmp_path: Path):
    result = run(tmp_path)
    assert result.accuracy == [[1.0, None, None], [1.0, 1.0, None], [1.0, 1.0, 1.0]]
    assert result.validation_accuracy == result.accuracy
    assert (result.average_accuracy, result.average_forgetting) == (1.0, 0.0)
    assert result.finished
    assert result.parameters_by_task == [2, 4, 6]
    assert result.bytes == 24
    assert result.flops == [4, 4, 4]
    assert result.widths == {"first": [2, 2, 2]}
    assert len(result.growth_events) == 3
    # the learner's own clock also ran while the benchmark tested: that is not counted twice
    assert (result.seconds["train"], result.seconds["evaluate"]) == (1.5, 0.75)
    assert 0 < result.seconds["test"] < 10


@pytest.mark.parametrize("forget", ["no", "yes"])
def test_tasks_are_measured_where_they_change_and_at_the_end(
    tmp_path: Path, forget: str, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    monkeypatch.setattr(
        "firefly_cl.benchmark.cell.accuracy_on",
        lambda learner, images: asked.append((learner.tasks_trained, images.task)),
    )
    run(tmp_path, forget=forget)
    every = {(trained, task) for trained in (1, 2, 3) for task in range(trained)}
    assert set(asked) == (every if forget == "yes" else every - {(2, 0)})
    assert len(asked) == 2 * len(set(asked))  # test and validation images


def test_a_forgetful_learner_is_recorded_as_one(tmp_path: Path):
    # each task mirrors the one before: the last weight is wrong on every other task
    result = run(tmp_path, forget="yes")
    assert result.accuracy == [[1.0, None, None], [0.0, 1.0, None], [1.0, 0.0, 1.0]]
    assert result.average_accuracy == pytest.approx(2 / 3)
    assert result.average_forgetting == pytest.approx((0.0 + 1.0) / 2)


def test_the_record_holds_all_it_promises(tmp_path: Path):
    run(tmp_path)
    content = json.loads((tmp_path / "record.json").read_text())
    promised = (
        "schema configuration versions seed accuracy average_accuracy average_forgetting "
        "parameters bytes flops seconds growth_events widths tasks finished hardware data"
    )
    assert set(promised.split()) <= set(content)
    assert content["configuration"] == cell().as_json()
    assert {"python", "torch", "avalanche-lib", "numpy", "firefly_cl", "commit"} <= set(
        content["versions"]
    )
    assert {"processor", "cores", "threads"} <= set(content["hardware"])
    assert content["data"]["images"] == {"train": 60, "validation": 30, "test": 120}
    assert list((tmp_path / "events").glob("events.*"))


def test_the_fingerprint_is_of_the_data(tmp_path: Path):
    same = [run(tmp_path / name).data for name in ("a", "b")]
    other = run(tmp_path / "c", stream=scenario(seed=1)).data
    assert same[0] == same[1] != other


def test_events_hold_the_accuracies(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, forget="yes")
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    average = [event.value for event in events.Scalars("accuracy/average")]
    assert average == pytest.approx([1.0, 0.5, 2 / 3])
    assert [event.value for event in events.Scalars("size/floats")] == [2, 4, 6]
    assert [event.value for event in events.Scalars("accuracy/00 task-0")] == [1.0, 0.0, 1.0]
    assert len(events.Tensors("growth/text_summary")) == 3


def test_the_probe_is_fixed_and_from_the_validation_split(tmp_path: Path):
    run(tmp_path, forget="yes")
    probe = read_probe(tmp_path)
    stream = scenario()
    for task in stream.tasks:
        assert torch.equal(probe.images[task.index], task.validation.images)
    assert torch.equal(probe.last[0], probe.ended[0])  # tasks 0 and 2 have the same answers
    assert not torch.equal(probe.last[1], probe.ended[1])


def test_spread_takes_distinct_indices_from_all_over():
    assert spread(5, 10) == [0, 1, 2, 3, 4]
    taken = spread(1000, IMAGES_PER_TASK)
    assert len(set(taken)) == IMAGES_PER_TASK
    assert taken[0] == 0 and taken[-1] >= 1000 - 1000 // IMAGES_PER_TASK - 1


def test_an_interrupted_run_keeps_its_tasks_whole(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt="2")
    result = read_record(tmp_path)
    assert not result.finished
    assert result.accuracy == [[1.0, None, None], [1.0, 1.0, None]]
    assert all(check.equal for check in verify(tmp_path, load))
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_diverged_run_says_so_and_keeps_its_tasks(tmp_path: Path):
    with pytest.raises(DivergenceError, match="learning-rate"):
        run(tmp_path, diverge="1")
    assert len(read_record(tmp_path).accuracy) == 1


def test_an_unfinished_run_starts_again_without_leftovers(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt="1")
    made = cell(options={"interrupt": "1"})
    assert finished_record(made, tmp_path) is None
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, made)
    assert len(list((tmp_path / "events").glob("events.*"))) == 1


def test_a_finished_run_of_the_same_cell_is_found(tmp_path: Path):
    result = run(tmp_path)
    found = finished_record(cell(), tmp_path)
    assert found is not None and found.accuracy == result.accuracy


def test_a_run_of_another_configuration_is_refused(tmp_path: Path):
    run(tmp_path)
    other = cell(recipe={"epochs": 3}, width=2.0)
    with pytest.raises(FileError, match=r"width 1.0, not 2.0 and 1 more.*--overwrite") as caught:
        finished_record(other, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_that_ended_before_its_first_task_is_in_nobodys_way(tmp_path: Path):
    with pytest.raises(DivergenceError):
        run(tmp_path, diverge="0")
    other = cell(recipe={"epochs": 3}, width=2.0)
    assert finished_record(other, tmp_path) is None
    assert run(tmp_path, other).finished and finished_record(other, tmp_path) is not None


def test_clear_leaves_what_is_not_a_runs(tmp_path: Path):
    run(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    clear(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "notes.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="--out"):
        check_writable(tmp_path / "file" / "run")
    check_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_many_runs_may_check_one_folder_at_once(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check_writable, [tmp_path] * 400))
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_finite_are_divergence():
    class Broken(FakeLearner):
        def logits(self, task: int, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 2), float("nan"))

    with pytest.raises(DivergenceError, match="task 0"):
        accuracy_on(Broken(None), scenario().tasks[0].test)  # type: ignore[arg-type]


def test_a_stream_of_another_length_is_refused(tmp_path: Path):
    short = scenario()

    class Short(type(short)):  # type: ignore[misc]
        def benchmark(self, *, normalised: bool = False) -> Any:
            benchmark = super().benchmark()
            benchmark.train_stream.pop()
            return benchmark

    with pytest.raises(DataError, match="2 experiences for 3 tasks"):
        run(tmp_path, stream=Short(**short.__dict__))


def test_flips_are_left_out_where_they_change_the_class(tmp_path: Path):
    seen = []

    def watching(setup: Setup) -> FakeLearner:
        seen.append(setup.recipe.augmentation.flip)
        return FakeLearner(setup)

    for flip in (False, True):
        stream = replace(scenario(n_tasks=1), flip=flip)
        run_cell(
            cell(),
            stream,
            watching,
            tmp_path,
            threads=1,
            overwrite=True,
            progress=lambda progress: None,
        )
    assert seen == [False, True]


def test_a_learner_that_waits_for_the_last_task_is_recorded(tmp_path: Path):
    class Waiting(FakeLearner):
        def train(self, experience: Any) -> None:
            super().train(experience)
            self.tasks_trained = 3 if len(self.weights) == 3 else 0

    result = run_cell(cell(), scenario(), Waiting, tmp_path, threads=1, progress=lambda p: None)
    assert result.accuracy == [[None] * 3, [None] * 3, [1.0] * 3]
    assert (result.average_accuracy, result.average_forgetting) == (1.0, None)
    assert result.finished and result.flops == [4, 4, 4]
    assert all(check.equal for check in verify(tmp_path, load))
    summaries([result])[0].summaries[0].row()


def test_without_a_validation_split_the_probe_is_from_training(tmp_path: Path):
    stream = scenario()
    none = tuple(
        replace(task, validation=Images(task.train.images[:0], task.train.labels[:0], task.index))
        for task in stream.tasks
    )
    result = run(tmp_path, stream=replace(stream, tasks=none))
    assert result.validation_accuracy[0] == [None] * 3
    probe = read_probe(tmp_path)
    assert torch.equal(probe.images[1], stream.tasks[1].train.images)
