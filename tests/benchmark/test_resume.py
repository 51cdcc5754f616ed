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
from small_search import SMALL_OPTIONS, SMALL_SEARCH

from firefly_cl import cli
from firefly_cl.benchmark import cell as cells
from firefly_cl.benchmark import checkpoints, environment
from firefly_cl.benchmark.cell import run_cell
from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.folders import MODEL_FOLDER
from firefly_cl.benchmark.records import read_record
from firefly_cl.benchmark.verify import verify
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.firefly import FireflyLearner
from firefly_cl.continual.learner import Resumable
from firefly_cl.errors import FileError
from firefly_cl.growth.latency import LatencyTable
from firefly_cl.scenarios import SCENARIOS, Scenario, ScenarioOptions

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("blank_pictures")

VERSIONS = environment.versions()
HARDWARE = environment.hardware(1, "cpu")

GROWING = Cell(
    "split-digits",
    "firefly",
    0,
    "mlp",
    width=0.25,
    budget=24_000,
    tasks=3,
    recipe={"epochs": 3, "mixup": 0.2, "augmentation": {"crop_padding": 1, "flip": False}},
    options={"grow_at": "0.3,0.6", "patience": "-10", **SMALL_OPTIONS},
)

BASELINE = replace(GROWING, strategy="naive", budget=None, options={})


LAST_WRITE = {1: 3, 2: 8, 3: 13}
"""Which write of checkpoints is that of the record, after so many tasks."""


class Killed(BaseException):
    """What a test stops a run with; no part of a run handles it."""


def digits(cell: Cell) -> Scenario:
    options = ScenarioOptions(seed=cell.seed, first_tasks=cell.tasks, validation=cell.validation)
    return SCENARIOS.get("split-digits")(options)


def run(folder: Path, cell: Cell = GROWING, scenario: Scenario | None = None) -> list[str]:
    """Run the cell; what was said of an earlier run."""
    folder.mkdir(exist_ok=True)
    said: list[str] = []
    run_cell(
        cell,
        scenario or digits(cell),
        STRATEGIES.get(cell.strategy),
        folder,
        threads=1,
        progress=lambda progress: None,
        resumed=lambda record, where: said.append(f"continues {where}"),
        discarded=lambda record, why: said.append(why),
    )
    return said


def stop(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool = False
) -> None:
    """Make a call of a function the moment at which the run is killed."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def stopping(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        result = original(*arguments, **named)
        if calls == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, stopping)


def interrupted(folder: Path, owner: Any, name: str, call: int, *, after: bool = False) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, owner, name, call, after=after)
        with pytest.raises(Killed):
            run(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted; it grows in every task, up to its budget."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == []
    record = read_record(folder)
    assert {event["task"] for event in record.growth_events} == {0, 1, 2}
    assert record.parameters <= 24_000 < record.parameters * 1.05
    return folder


@pytest.fixture(scope="module")
def one_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its second task."""
    folder = tmp_path_factory.mktemp("one")
    interrupted(folder, FireflyLearner, "train", 2)
    return folder


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its third task."""
    folder = tmp_path_factory.mktemp("two")
    interrupted(folder, FireflyLearner, "train", 3)
    return folder


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
        replace(GROWING, backbone="resnet9", width=0.1, tasks=2, budget=None),
        replace(GROWING, validation=0.0, budget=None),  # growth holds out images of its own
        replace(BASELINE, strategy="individual"),
        BASELINE,
        replace(BASELINE, backbone="resnet9", width=0.1, tasks=2),
        replace(BASELINE, strategy="ewc"),
        replace(BASELINE, strategy="replay", options={"mem_size": "40"}),
        replace(BASELINE, strategy="replay", options={"mem_size": "40", "buffer": "reservoir"}),
        replace(BASELINE, strategy="replay", options={"mem_size": "40", "buffer": "class"}),
        replace(BASELINE, strategy="ewc-online"),
        replace(BASELINE, strategy="si", backbone="resnet9", width=0.1),
        replace(BASELINE, strategy="mas"),
        replace(BASELINE, strategy="lwf", backbone="mlp-bn"),
        replace(BASELINE, strategy="der", options={"mem_size": "40"}),
        replace(BASELINE, strategy="er-ace", options={"mem_size": "40"}),
        replace(BASELINE, strategy="agem", options={"mem_size": "40"}),
        replace(BASELINE, strategy="gem", options={"mem_size": "40"}),
        replace(BASELINE, strategy="icarl", options={"mem_size": "40"}),
        replace(BASELINE, strategy="gdumb", options={"mem_size": "40"}),
        replace(BASELINE, strategy="packnet", backbone="resnet9", width=0.1),
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
        "reservoir",
        "replay by class",
        "ewc-online",
        "si resnet9",
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
    cell = replace(BASELINE, strategy="replay", tasks=4, recipe=recipe, options=options)
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


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = [
    (flipped, "model/model.safetensors", "damaged (its checksum differs)"),
    (halved, "model/model.safetensors", "damaged (its checksum differs)"),
    (Path.unlink, "model/model.safetensors", "is missing"),
    (halved, "model/model.json", "damaged (its checksum differs)"),
    (halved, "model/checksums.json", "is damaged"),
    (halved, "probe.safetensors", "damaged (its checksum differs)"),
    (Path.unlink, "probe.safetensors", "is missing"),
    (halved, "record.json", "damaged (its checksum differs)"),
]


@pytest.mark.parametrize(("damage", "file", "why"), DAMAGES[:-1])
def test_a_damaged_run_starts_again(
    damage: Callable[[Path], Any], file: str, why: str, one_task: Path, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(one_task, tmp_path / "run")
    damage(folder / file)
    (said,) = run(folder)
    assert why in said and file in said and "\n" not in said
    assert_same_run(whole, folder)


@pytest.mark.parametrize(("damage", "file", "why"), DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    damage: Callable[[Path], Any], file: str, why: str, two_tasks: Path, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(two_tasks, tmp_path / "run")
    damage(folder / file)
    (said,) = run(folder)
    assert said.startswith("continues only after task 1/3 (") and "\n" not in said
    assert why in said and file in said
    assert_same_run(whole, folder)


def test_falling_back_may_be_cut_off(two_tasks: Path, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two_tasks, tmp_path / "run")
    halved(folder / "model/model.safetensors")
    interrupted(folder, checkpoints, "_remove", 1)  # the record is the older one already
    assert run(folder) == ["continues after task 1/3"]
    assert_same_run(whole, folder)


def test_both_checkpoints_damaged_start_again(two_tasks: Path, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two_tasks, tmp_path / "run")
    for name in ("model", "model.before"):
        halved(folder / name / "model.safetensors")
    (said,) = run(folder)
    assert str(folder / "model/model.safetensors") in said
    assert_same_run(whole, folder)


def test_two_checkpoints_are_kept_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    original = checkpoints.write_atomic

    def counting(path: Path, content: bytes) -> None:
        original(path, content)
        held.append(len(list(tmp_path.glob("model*"))))

    monkeypatch.setattr(checkpoints, "write_atomic", counting)
    run(tmp_path)
    assert len(held) == LAST_WRITE[3] and max(held) == 2
    assert [path.name for path in tmp_path.glob("*.before")] == []


def test_a_new_model_that_was_cut_off_leaves_the_one_before(whole: Path, tmp_path: Path) -> None:
    interrupted(tmp_path, checkpoints, "write_atomic", 7)  # the record does not tell of it yet
    halved(tmp_path / "model/model.safetensors")
    assert run(tmp_path) == ["continues after task 1/3"]
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("strategy", ["firefly", "individual", "naive", "ewc", "replay", "packnet"])
def test_a_model_of_another_number_of_tasks_is_refused(strategy: str, tmp_path: Path) -> None:
    cell = replace(GROWING, strategy=strategy, options={}, budget=None, tasks=2)
    run(tmp_path, cell)
    setup = cells.setup_of(cell, digits(cell), lambda progress: None)
    learner = STRATEGIES.get(strategy)(setup)
    assert isinstance(learner, Resumable)
    for tasks in (1, 3):
        with pytest.raises(FileError, match=f"{tasks}$"):
            learner.resume(tmp_path / MODEL_FOLDER, tasks)
    assert learner.tasks_trained == 0
    learner.resume(tmp_path / MODEL_FOLDER, 2)
    assert learner.tasks_trained == 2
    assert learner.bytes() == read_record(tmp_path).bytes


@pytest.mark.parametrize("damage", [flipped, halved, Path.unlink])
def test_a_damaged_memory_is_told(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    cell = replace(BASELINE, strategy="replay", options={"mem_size": "40"}, tasks=2)
    run(tmp_path / "whole", cell)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        stop(patch, cells, "write_checkpoint", 1, after=True)
        run(tmp_path / "run", cell)
    (memory,) = (tmp_path / "run" / MODEL_FOLDER).glob("memory-*")
    damage(memory)
    (said,) = run(tmp_path / "run", cell)
    assert f"{memory}" in said and ("missing" if damage is Path.unlink else "checksum") in said
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_memory_of_another_strategy_is_refused(tmp_path: Path) -> None:
    run(tmp_path, replace(BASELINE, strategy="ewc", tasks=2))
    cell = replace(BASELINE, strategy="replay", tasks=2)
    learner = STRATEGIES.get("replay")(cells.setup_of(cell, digits(cell), lambda progress: None))
    assert isinstance(learner, Resumable)
    with pytest.raises(FileError, match="of another strategy"):
        learner.resume(tmp_path / MODEL_FOLDER, 2)


def test_a_killed_process_is_continued(tmp_path: Path) -> None:
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
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    assert f"[1/1] firefly seed 0: continues after task {tasks}/3\n" in done.stderr
    assert cli.execute(cli._parse([*arguments, str(tmp_path / "whole")])) == 0
    folders = [tmp_path / name / "split-digits/firefly-seed0" for name in ("whole", "killed")]
    assert read_record(folders[0]).growth_events
    assert_same_run(*folders)
