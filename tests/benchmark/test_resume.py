"""An interrupted run goes on after its last task, to the same bits as if never interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import assert_same_run
from small_search import SMALL_SEARCH
from stopped_runs import BASELINE, GROWING, LAST_WRITE, Killed, digits, interrupted, run, stop

from firefly_cl import cli
from firefly_cl.benchmark import checkpoints, environment
from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.records import read_record
from firefly_cl.benchmark.verify import verify
from firefly_cl.continual.firefly import FireflyLearner
from firefly_cl.errors import FileError
from firefly_cl.growth.latency import LatencyTable

torch.set_num_threads(1)

VERSIONS = environment.versions()
HARDWARE = environment.hardware(1, "cpu")


@pytest.mark.parametrize(
    ("owner", "name", "call", "after", "done"),
    [
        (FireflyLearner, "train", 2, False, 1),
        (FireflyLearner, "train", 3, True, 2),
        (FireflyLearner, "save", 2, True, 1),
        # Written of the first task: checksums, probe, record; of the others: checksums, probe and
        # record of the task before, then of the new one.
        (checkpoints, "write_atomic", 4, True, 1),
        (checkpoints, "write_atomic", 6, True, 1),
        (checkpoints, "_rename", 2, True, 1),  # the old model moved away, the new one not in place
        (checkpoints, "_rename", 3, True, 1),
        (checkpoints, "write_atomic", 7, True, 1),
        (checkpoints, "write_atomic", 8, True, 2),
        (checkpoints, "_remove", 5, True, 2),  # of the task before the last, its model is gone
    ],
)
def test_a_run_killed_anywhere_goes_on_to_the_same_bits(
    owner: Any, name: str, call: int, after: bool, done: int, whole: Path, tmp_path: Path
) -> None:
    interrupted(tmp_path, owner, name, call, after=after)
    assert run(tmp_path) == [f"continues after task {done}/3"]
    assert_same_run(whole, tmp_path)
    assert all(check.equal for check in verify(tmp_path))


def test_growth_charged_by_timings_goes_on_with_the_same_ones(tmp_path: Path) -> None:
    file = tmp_path / "timings.json"
    options = {**GROWING.options, "cost": "latency", "latency": str(file)}
    cell = replace(GROWING, tasks=2, budget=None, options=options)
    assert run(tmp_path / "whole", cell) == []
    events = read_record(tmp_path / "whole").growth_events
    assert {event["task"] for event in events} == {0, 1}
    (table,) = {event["latency_table"] for event in events}
    assert LatencyTable.load(file).digest() == table
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, FireflyLearner, "train", 2)
        with pytest.raises(Killed):
            run(tmp_path / "stopped", cell)
    told = json.loads(file.read_text())
    for entry in told["timings"]:
        entry["milliseconds"] = [
            [1e3 * (1 + i)] * len(entry["columns"]) for i in range(len(entry["rows"]))
        ]
    file.write_text(json.dumps(told))
    assert run(tmp_path / "stopped", cell) == ["continues after task 1/2"]
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_may_be_killed_again_and_again(whole: Path, tmp_path: Path) -> None:
    interrupted(tmp_path, checkpoints, "write_atomic", 7)
    interrupted(tmp_path, checkpoints, "write_atomic", 4)
    interrupted(tmp_path, checkpoints, "_rename", 4)
    assert run(tmp_path) == ["continues after task 2/3"]
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize(
    "cell",
    [
        replace(
            GROWING,
            backbone="resnet9",
            width=0.05,
            tasks=2,
            budget=None,
            options={**GROWING.options, "grow_at": "0.4"},
        ),
        replace(GROWING, validation=0.0, budget=None),  # growth holds out images of its own
        replace(BASELINE, strategy="individual"),
        BASELINE,
        replace(BASELINE, backbone="resnet9", width=0.1, tasks=2),
        replace(BASELINE, strategy="ewc"),
        replace(BASELINE, strategy="replay", options={"mem_size": "40"}),
        replace(BASELINE, strategy="ewc-online"),
        replace(BASELINE, strategy="si", backbone="mlp-bn"),
        replace(BASELINE, strategy="mas"),
        replace(BASELINE, strategy="lwf", backbone="mlp-bn"),
        replace(BASELINE, strategy="der", options={"mem_size": "40"}),
        replace(BASELINE, strategy="er-ace", options={"mem_size": "40"}),
        replace(BASELINE, strategy="agem", options={"mem_size": "40"}),
        replace(BASELINE, strategy="gem", options={"mem_size": "40"}),
        replace(BASELINE, strategy="icarl", options={"mem_size": "40"}),
        replace(BASELINE, strategy="gdumb", options={"mem_size": "40"}),
        replace(BASELINE, strategy="packnet", backbone="resnet9", width=0.1, tasks=2),
        replace(BASELINE, strategy="replay", options={"mem_size": "40", "head": "single"}),
        replace(BASELINE, strategy="gdumb", options={"mem_size": "40", "head": "single"}),
        replace(BASELINE, strategy="der", options={"mem_size": "40", "head": "single"}),
    ],
    ids=[
        "resnet9",
        "no validation split",
        "individual",
        "naive",
        "naive resnet9",
        "ewc",
        "replay",
        "ewc-online",
        "si",
        "mas",
        "lwf",
        "der",
        "er-ace",
        "agem",
        "gem",
        "icarl",
        "gdumb",
        "packnet resnet9",
        "replay single head",
        "gdumb single head",
        "der single head",
    ],
)
def test_other_runs_go_on_to_the_same_bits(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path / "whole", cell) == []
    tasks = cell.tasks or 0
    with pytest.raises(Killed):
        stop(monkeypatch, checkpoints, "write_atomic", LAST_WRITE[tasks])
        run(tmp_path / "killed", cell)
    monkeypatch.undo()
    assert run(tmp_path / "killed", cell) == [f"continues after task {tasks - 1}/{tasks}"]
    grown = {event["task"] for event in read_record(tmp_path / "whole").growth_events}
    assert grown == (set(range(tasks)) if cell.strategy == "firefly" else set())
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("buffer", ["balanced", "class", "reservoir"])
def test_a_memory_goes_on_where_several_tasks_are_left(buffer: str, tmp_path: Path) -> None:
    options = {"mem_size": "40", "buffer": buffer}
    recipe = {**BASELINE.recipe, "epochs": 1}
    cell = replace(
        BASELINE, strategy="replay", tasks=4, split_into=None, recipe=recipe, options=options
    )
    assert run(tmp_path / "whole", cell) == []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        stop(patch, checkpoints, "write_atomic", LAST_WRITE[2])
        run(tmp_path / "killed", cell)
    assert run(tmp_path / "killed", cell) == ["continues after task 1/4"]
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_events_are_those_of_the_whole_run(one_task: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = shutil.copytree(one_task, tmp_path / "run")
    run(folder)
    sizes: dict[int, float] = {}
    growth: list[int] = []
    for file in sorted((folder / "events").iterdir()):
        events = EventAccumulator(str(file))
        events.Reload()
        sizes.update((event.step, event.value) for event in events.Scalars("size/floats"))
        growth += [event.step for event in events.Tensors("growth/text_summary")]
    record = read_record(folder)
    assert sizes == dict(enumerate(record.parameters_by_task))
    assert growth == list(range(len(record.growth_events)))


@pytest.mark.parametrize(
    ("name", "was", "part"),
    [
        ("versions", lambda: {**VERSIONS, "torch": "0.1"}, "versions torch '0.1', not "),
        ("hardware", lambda *a: {**HARDWARE, "threads": 7}, "hardware threads 7, not 1"),
    ],
)
def test_a_run_of_another_environment_is_refused(
    name: str,
    was: Callable[..., Any],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(environment, name, was)
        interrupted(tmp_path, FireflyLearner, "train", 2)
    before = read_record(tmp_path)
    with pytest.raises(FileError, match=f"{part}.*--overwrite"):
        run(tmp_path)
    assert read_record(tmp_path) == before


def test_a_run_on_other_data_is_refused(one_task: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(one_task, tmp_path / "run")
    with pytest.raises(FileError, match="data sha256"):
        run(folder, scenario=digits(replace(GROWING, seed=1)))


def test_a_killed_process_is_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "split-digits", "--threads", "1", "--strategy", "firefly", "--tasks", "3"]
    for name, value in SMALL_SEARCH.items():
        arguments += ["--setting", f"{name}={value}"]
    arguments += ["--epochs", "4", "--out"]
    command = [sys.executable, "-m", "firefly_cl.cli", *arguments, str(tmp_path / "killed")]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "task 1/3 (" in line:
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    tasks = len(read_record(tmp_path / "killed/split-digits/firefly-seed0").accuracy)
    assert 1 <= tasks < 3
    for name in ("killed", "whole"):
        assert cli.execute(cli._parse([*arguments, str(tmp_path / name)])) == 0
    told = f"[1/1] firefly seed 0: continues after task {tasks}/3\n"
    assert capsys.readouterr().err.count(told) == 1
    folders = [tmp_path / name / "split-digits/firefly-seed0" for name in ("whole", "killed")]
    assert read_record(folders[0]).growth_events
    assert_same_run(*folders)
