"""benchmarks/step_time.py times what it says: the open task's units against the same widths."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_module import ROOT, script_module

from firefly_cl.continual.precision import Precision
from firefly_cl.errors import ConfigurationError, FileError
from firefly_cl.network import extract

PAGE = "before\n<!-- table:step-time -->\n<!-- /table -->\nafter\n"


@pytest.fixture(scope="module")
def step_time() -> ModuleType:
    return script_module("step_time")


@pytest.fixture(scope="module")
def small(step_time: ModuleType):
    return step_time.Settings(
        tasks=2, width=0.07, image_size=8, batch_size=4, repeats=2, warmup=1, classes=3
    )


def test_both_networks_have_the_same_widths(step_time: ModuleType, small) -> None:
    net = step_time.late_task(small)
    assert len(net.tasks) == small.tasks + 1
    assert [task.frozen for task in net.tasks] == [True, True, False]
    convs = [m for m in extract(net).modules() if isinstance(m, torch.nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [
        sum(net.widths()[net.node(name).layout[0].space])
        for name in net.layers
        if net.node(name).kind == "conv"
    ]


def test_a_step_trains_the_open_task_and_nothing_else(step_time: ModuleType, small) -> None:
    net = step_time.late_task(small)
    subject = step_time.Subject.of(net, net.trainable())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ticks = count()
    step_time.step(
        subject,
        torch.optim.SGD(subject.parameters, lr=0.1),
        torch.randn(4, 3, 8, 8),
        torch.tensor([0, 1, 2, 0]),
        Precision(None, False),
        lambda: float(next(ticks)),
    )
    moved = {n for n, value in net.state_dict().items() if not torch.equal(value, before[n])}
    assert moved and all(".blocks.2." in name for name in moved)
    assert subject.seconds == {"forward": [1], "backward": [1], "optimizer": [1], "step": [3]}


def test_the_record_is_written_and_drawn(step_time: ModuleType, small, tmp_path: Path) -> None:
    record, page = tmp_path / "records" / "step_time.json", tmp_path / "page.md"
    page.write_text(PAGE)
    step_time.main(small, record, page, threads=1)
    content = json.loads(record.read_text())
    assert content["settings"]["tasks"] == 2
    assert 0 < content["trained"]["growing"] < content["trained"]["dense"]
    assert set(content["precisions"]) == {"float32", "bfloat16"}
    drawn = page.read_text()
    assert drawn.startswith("before\n") and drawn.endswith("after\n")
    assert drawn.count("| float32 |") == drawn.count("| bfloat16 |") == 4

    page.write_text(PAGE)
    step_time.main(small, record, page, draw_only=True)
    assert page.read_text() == drawn


def example_record(step_time: ModuleType) -> dict:
    times = {phase: [0.001, 0.002, 0.004] for phase in step_time.PHASES}
    slow = {phase: [0.004, 0.008, 0.009] for phase in step_time.PHASES}
    return {
        "settings": vars(step_time.Settings()),
        "hardware": {"processor": "P", "threads": 1},
        "versions": {"torch": "2"},
        "trained": {"growing": 1, "dense": 2},
        "precisions": {"float32": {"seconds": {"growing": times, "dense": slow}}},
    }


def test_ratios_are_of_medians(step_time: ModuleType) -> None:
    expected = "| float32 | step | 2.0 (1.0-4.0) | 8.0 (4.0-9.0) | 0.25 |"
    assert expected in step_time.table(example_record(step_time))


def test_errors_say_what_to_do(step_time: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="measure first"):
        step_time.draw(tmp_path / "none.json", tmp_path / "page.md")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(FileError, match="measure again"):
        step_time.draw(tmp_path / "bad.json", tmp_path / "page.md")
    page = tmp_path / "page.md"
    page.write_text("no markers\n")
    (tmp_path / "good.json").write_text(json.dumps(example_record(step_time)))
    with pytest.raises(FileError, match="add them"):
        step_time.draw(tmp_path / "good.json", page)
    assert page.read_text() == "no markers\n"
    with pytest.raises(ConfigurationError, match="repeats is 0"):
        step_time.Settings(repeats=0)


def test_the_page_has_the_markers() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    assert page.count("<!-- table:step-time -->") == 1


def test_the_page_shows_the_record(step_time: ModuleType, tmp_path: Path) -> None:
    record = ROOT / "benchmarks" / "records" / "step_time.json"
    page = tmp_path / "performance.md"
    page.write_text((ROOT / "docs" / "performance.md").read_text())
    step_time.draw(record, page)
    assert page.read_text() == (ROOT / "docs" / "performance.md").read_text()
