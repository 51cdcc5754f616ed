"""A run stopped inside a task goes on from its snapshot, to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import assert_same_run
from small_search import SMALL_OPTIONS

from firefly_cl.benchmark import cell as cells
from firefly_cl.benchmark import environment
from firefly_cl.benchmark.cell import run_cell
from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.folders import SNAPSHOT_NAME, begun_threads
from firefly_cl.benchmark.records import read_record
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.snapshot import Snapshot, Snapshots, read_snapshot
from firefly_cl.errors import ConfigurationError, FileError
from firefly_cl.scenarios import SCENARIOS, ScenarioOptions

torch.set_num_threads(1)

ALWAYS = 1e-9
"""Minutes that are over at the end of every epoch."""

RECIPE = {"epochs": 5, "mixup": 0.2, "augmentation": {"crop_padding": 1, "flip": False}}

GROWING = Cell(
    "split-digits",
    "firefly",
    0,
    "mlp",
    width=0.25,
    budget=24_000,
    tasks=2,
    recipe=RECIPE,
    options={
        "grow_at": "0.2,0.4,0.8",
        "select_at": "0.4",
        "prune_at": "0.6",
        "patience": "-10",
        **SMALL_OPTIONS,
    },
)
BASELINE = replace(GROWING, strategy="naive", budget=None, options={})
MEMORY = {"mem_size": "40"}


class Killed(BaseException):
    """What a test stops a run with; no part of a run handles it."""


def run(folder: Path, cell: Cell, kill_at: int = 0, every: float = ALWAYS) -> list[str]:
    """Run the cell, killed after so many snapshots; what was said of an earlier run."""
    folder.mkdir(exist_ok=True)
    said: list[str] = []
    options = ScenarioOptions(seed=cell.seed, first_tasks=cell.tasks, validation=cell.validation)
    written = 0

    def counting(*arguments: Any, **named: Any) -> None:
        nonlocal written
        write(*arguments, **named)
        written += 1
        if written == kill_at:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        write = cells.write_snapshot
        patch.setattr(cells, "write_snapshot", counting)
        try:
            run_cell(
                cell,
                SCENARIOS.get(cell.scenario)(options),
                STRATEGIES.get(cell.strategy),
                folder,
                threads=1,
                save_every=every,
                progress=lambda progress: None,
                resumed=lambda record, where: said.append(f"continues {where}"),
                discarded=lambda record, why: said.append(why),
            )
        except Killed:
            assert kill_at
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without snapshots; its tasks grow, select and prune."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, GROWING, every=0.0) == []
    events = read_record(folder).growth_events
    assert [event["epoch"] for event in events if event["task"] == 1] == [1, 2, 2, 3, 4]
    return folder


@pytest.mark.parametrize("kill_at", [1, 3, 6, 7, 8])
def test_a_growing_task_goes_on_after_any_epoch(kill_at: int, whole: Path, tmp_path: Path) -> None:
    run(tmp_path, GROWING, kill_at)
    task, epoch = divmod(kill_at - 1, 4)
    assert run(tmp_path, GROWING) == [f"continues after epoch {epoch + 1} of task {task + 1}/2"]
    assert_same_run(whole, tmp_path)


def test_a_task_may_be_killed_again_and_again(whole: Path, tmp_path: Path) -> None:
    for _ in range(8):
        run(tmp_path, GROWING, 1)
    assert run(tmp_path, GROWING) == ["continues after epoch 4 of task 2/2"]
    assert_same_run(whole, tmp_path)


def test_a_part_of_the_first_task_is_refused_elsewhere_and_kept(tmp_path: Path) -> None:
    run(tmp_path, BASELINE, 1)
    before = (tmp_path / SNAPSHOT_NAME).read_bytes()
    assert begun_threads(tmp_path) == 1
    for part, other in (
        ("versions", {**environment.versions(), "torch": "0.1"}),
        ("hardware", environment.hardware(7, "cpu")),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(environment, part, lambda *_, other=other: other)
            with pytest.raises(FileError, match=f"unfinished run with {part}.*--overwrite"):
                run(tmp_path, BASELINE)
        assert (tmp_path / SNAPSHOT_NAME).read_bytes() == before
    assert run(tmp_path, BASELINE) == ["continues after epoch 1 of task 1/2"]


def test_seconds_hold_those_before_the_kill(tmp_path: Path) -> None:
    run(tmp_path, GROWING, 8)
    spent = read_snapshot(tmp_path / SNAPSHOT_NAME).values["spent"]
    before = read_record(tmp_path).seconds
    run(tmp_path, GROWING)
    after = read_record(tmp_path).seconds
    phases = ("train", "grow", "select", "prune")
    task = sum(after.get(phase, 0.0) - before.get(phase, 0.0) for phase in phases)
    assert spent < task < 100
    assert all(after[phase] > before.get(phase, 0.0) for phase in phases)


@pytest.mark.parametrize(
    "cell",
    [
        replace(
            GROWING,
            backbone="resnet9",
            width=0.05,
            budget=None,
            options={"grow_at": "0.4", **SMALL_OPTIONS},
        ),
        replace(
            GROWING,
            validation=0.0,
            options={"grow_at": "0.4,0.6", "restart": "yes", **SMALL_OPTIONS},
        ),
        replace(GROWING, options={"grow_at": "0.2,0.4,0.8", "patience": "0.99", **SMALL_OPTIONS}),
        replace(GROWING, recipe={**RECIPE, "optimizer": "adamw", "learning_rate": 0.002}),
        replace(
            GROWING,
            options={"start": "nearest", "shared": "0", **SMALL_OPTIONS},
        ),
        replace(BASELINE, strategy="individual"),
        BASELINE,
        replace(BASELINE, backbone="resnet9", width=0.1, recipe={**RECIPE, "channels_last": True}),
        replace(BASELINE, recipe={**RECIPE, "optimizer": "adamw", "learning_rate": 0.002}),
        replace(BASELINE, strategy="ewc"),
        replace(BASELINE, strategy="ewc-online"),
        replace(BASELINE, strategy="replay", options=MEMORY),
        replace(BASELINE, strategy="si", backbone="mlp-bn"),
        replace(BASELINE, strategy="mas"),
        replace(BASELINE, strategy="lwf", backbone="mlp-bn"),
    ],
    ids=[
        "firefly resnet9",
        "firefly restart",
        "firefly that has stopped growing",
        "firefly adamw",
        "firefly nearest",
        "individual",
        "naive",
        "naive resnet9 channels last",
        "naive adamw",
        "ewc",
        "ewc-online",
        "replay",
        "si",
        "mas",
        "lwf",
    ],
)
def test_other_tasks_go_on_to_the_same_bits(cell: Cell, tmp_path: Path) -> None:
    assert run(tmp_path / "whole", cell, every=0.0) == []
    run(tmp_path / "killed", cell, 7)
    assert run(tmp_path / "killed", cell) == ["continues after epoch 3 of task 2/2"]
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("strategy", ["gem", "agem", "der", "er-ace", "icarl", "gdumb", "packnet"])
def test_what_cannot_go_on_inside_a_task_keeps_nothing_there(strategy: str, tmp_path: Path) -> None:
    cell = replace(BASELINE, strategy=strategy, tasks=1, recipe={**RECIPE, "epochs": 2})
    run(tmp_path, cell, 1)  # is not killed: no snapshot is written
    assert read_record(tmp_path).finished


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "kill_at"), [(halved, 2), (flipped, 6), (halved, 6)])
def test_a_damaged_snapshot_falls_back_to_the_last_task(
    damage: Callable[[Path], None], kill_at: int, whole: Path, tmp_path: Path
) -> None:
    run(tmp_path, GROWING, kill_at)
    damage(tmp_path / SNAPSHOT_NAME)
    (said,) = run(tmp_path, GROWING)
    damaged = f"{tmp_path / SNAPSHOT_NAME} is damaged"
    assert said == (damaged if kill_at == 2 else f"continues only after task 1/2 ({damaged})")
    assert_same_run(whole, tmp_path)


def test_a_snapshot_of_an_older_task_is_left_alone(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, GROWING, 4)
    older = (tmp_path / SNAPSHOT_NAME).read_bytes()
    run(tmp_path, GROWING, 1)
    (tmp_path / SNAPSHOT_NAME).write_bytes(older)  # as if killed before it was removed
    assert run(tmp_path, GROWING) == ["continues after task 1/2"]
    assert_same_run(whole, tmp_path)


def test_a_snapshot_takes_the_place_of_the_checkpoint_before(tmp_path: Path) -> None:
    cell = replace(BASELINE, tasks=3)
    run(tmp_path, cell, 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "events",
        "model",
        "probe.safetensors",
        "record.json",
        SNAPSHOT_NAME,
    ]


def test_a_snapshot_is_read_as_it_was(tmp_path: Path) -> None:
    grid = torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    tensors = {"a": grid, "part": torch.arange(9)[3:5], "none": torch.zeros(0)}
    values = {"numbers": [0.1, float("inf"), None], "big": 2**100, "array": torch.tensor([1, 2])}
    path = tmp_path / SNAPSHOT_NAME
    path.write_bytes(Snapshot(3, 4, tensors, values, "abc").to_bytes())
    found = read_snapshot(path)
    assert (found.task, found.epoch, found.record) == (3, 4, "abc")
    assert found.values == {**values, "array": [1, 2]}
    assert found.tensors.keys() == tensors.keys()
    for name, part in tensors.items():
        assert torch.equal(found.tensors[name], part) and found.tensors[name].dtype == part.dtype
    assert found.tensors["a"].stride() == grid.stride()
    path.write_bytes(path.read_bytes().replace(b'\\"schema\\": 1,', b'\\"schema\\": 9,'))
    with pytest.raises(FileError, match="schema 9, this version reads up to 1: update"):
        read_snapshot(path)
    with pytest.raises(FileError, match="there is no snapshot"):
        read_snapshot(tmp_path / "missing")


def test_snapshots_are_due_after_their_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    kept: list[Snapshot] = []
    snapshots = Snapshots(2.0, kept.append)
    assert snapshots.begin(0) is None
    for seconds, due in ((119.0, False), (120.0, True), (500.0, True)):
        clock[0] = seconds
        assert snapshots.due() is due
    snapshots.take(0, 3, ({}, {"a": 1}))
    assert [(one.task, one.epoch, one.values) for one in kept] == [(0, 3, {"a": 1, "spent": 500.0})]
    clock[0] = 619.0
    assert not snapshots.due()
    snapshots.pending = kept[0]
    assert snapshots.begin(1) is None  # it is of another task
    snapshots.pending = kept[0]
    assert snapshots.begin(0) is kept[0] and snapshots.spent == 500.0
    assert not Snapshots(0.0).due()
    for minutes in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="minutes between snapshots: give 0 or more"):
            Snapshots(minutes)


def test_lateral_heads_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """Killed in a task that comes after one with a lateral head, and ends with one of its own."""
    options = {"start": "copies", "shared": "0", "grow_at": "", "lateral": "0.25"}
    cell = replace(GROWING, tasks=3, budget=None, options=options)
    assert run(tmp_path / "whole", cell, every=0.0) == []
    run(tmp_path / "killed", cell, 11)
    assert run(tmp_path / "killed", cell) == ["continues after epoch 3 of task 3/3"]
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    events = read_record(tmp_path / "killed").growth_events
    assert [event["lateral"] for event in events] == [[0], [0, 1]]


@pytest.mark.parametrize("kill_at", [2, 3, 8])
def test_what_a_pruned_task_was_goes_on_teaching_to_the_same_bits(
    tmp_path: Path, kill_at: int
) -> None:
    """Killed before the first task is pruned, after that, and after the second one is."""
    options = {"grow_at": "", "prune_at": "0.6", "lam": "0.001", "gate_epochs": "3"}
    cell = replace(GROWING, budget=None, options={**options, "distil": "0.7"})
    assert run(tmp_path / "whole", cell, every=0.0) == []
    run(tmp_path / "killed", cell, kill_at)
    assert len(run(tmp_path / "killed", cell)) == 1
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    events = read_record(tmp_path / "killed").growth_events
    assert all(sum(event["removed"].values()) > 0 for event in events)
    plain = replace(cell, options=options)
    run(tmp_path / "plain", plain, every=0.0)
    assert read_record(tmp_path / "plain").accuracy != read_record(tmp_path / "whole").accuracy
