"""TensorBoard events: growth as it happens, each event once, and drawings after tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from firefly_cl.benchmark.drawing import blocks, draw_network, draw_widths
from firefly_cl.benchmark.events import Events
from firefly_cl.network.readings import Reading

torch.set_num_threads(1)

DRAWS_PICTURES = True

WIDTHS = {"a": [4, 2], "b": [3, 0]}
READINGS = [
    Reading("x", -1, "a", 0, 1),
    Reading("x", -1, "a", 1, 1),
    Reading("a", 0, "b", 0, 4),
    Reading("b", 0, "head", 0, 3),
    Reading("b", 0, "head", 1, 2),
]
GROWN = {"task": 0, "kinds": {"new": 2}}
PRUNED = {"task": 1, "removed": {"a": 1}}


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    return events


def texts(events: EventAccumulator) -> dict[int, Any]:
    found = events.Tensors("growth/text_summary")
    assert len({each.step for each in found}) == len(found)
    return {e.step: json.loads(e.tensor_proto.string_val[0]) for e in found}


def test_scores_and_gates_are_written_as_they_come(tmp_path: Path) -> None:
    with Events(tmp_path) as events:
        events.edited(0, GROWN, {"new": [0.5, 0.25, float("nan")], "split": [float("nan")]}, ())
        now = read(tmp_path)  # before the task has ended
        assert texts(now) == {0: GROWN}
        (scores,) = now.Histograms("scores/new")
        assert (scores.step, scores.histogram_value.num) == (0, 2)
        assert (scores.histogram_value.min, scores.histogram_value.max) == (0.25, 0.5)
        assert "scores/split" not in now.Tags()["histograms"]
        gates = [torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.0, 0.9, 1.0])]
        events.edited(1, PRUNED, {}, gates)
    found = read(tmp_path).Histograms("gates/001 prune in task 1")
    assert [each.step for each in found] == [1, 2]
    assert [each.histogram_value.sum for each in found] == pytest.approx([1.5, 1.9])


def test_each_event_is_told_once(tmp_path: Path) -> None:
    with Events(tmp_path, growth_written=1) as events:
        events.edited(0, PRUNED, {}, ())  # the first since the run was taken up
        events.task(0, [1.0], ["one", "two"], 10, {"a": [4]}, [GROWN, PRUNED, GROWN])
    assert texts(read(tmp_path)) == {1: PRUNED, 2: GROWN}


def test_the_network_is_drawn_after_each_task(tmp_path: Path) -> None:
    names = ["one", "two"]
    with Events(tmp_path) as events:
        events.task(0, [1.0, None], names, 10, {"a": [4], "b": [3]}, [], READINGS[:1])
        events.task(1, [1.0, 1.0], names, 20, WIDTHS, [], READINGS)
    found = read(tmp_path)
    for tag in ("network/widths", "network/drawing"):
        assert [image.step for image in found.Images(tag)] == [0, 1]
        assert all(image.width > 500 and image.height > 100 for image in found.Images(tag))


def test_a_network_that_nobody_grows_is_not_drawn(tmp_path: Path) -> None:
    with Events(tmp_path) as events:
        events.task(0, [1.0], ["one"], 10, {"a": [4]}, [])
    assert read(tmp_path).Tags()["images"] == []


def test_blocks_stand_where_they_belong() -> None:
    names, found = blocks(WIDTHS, READINGS)
    assert names == ["x", "a", "b", "head"]
    assert set(found) == {("x", -1), ("a", 0), ("a", 1), ("b", 0), ("head", 0), ("head", 1)}
    # six units in the first space, centred, the older below; three in the second
    assert (found["a", 0].bottom, found["a", 0].top, found["a", 1].top) == (-3, 1, 3)
    assert (found["b", 0].bottom, found["b", 0].middle, found["b", 0].top) == (-1.5, 0, 1.5)
    assert found["head", 0].top == found["head", 1].bottom == 0
    assert [found[name, owner].column for name, owner in (("x", -1), ("b", 0))] == [0, 2]


def lines(figure: Figure) -> list[Any]:
    return list(figure.axes[0].collections[0].get_paths())


def test_lines_lead_from_who_is_read_to_the_newest_task() -> None:
    figure = draw_network(WIDTHS, READINGS, 2)
    first, second = lines(figure)  # of task 1: its units in a read x, its head reads b
    assert [first.vertices[0][1], first.vertices[-1][1]] == pytest.approx([0, 2])
    assert second.vertices[0][1] == 0 and second.vertices[-1][1] > 0
    assert 2 < second.vertices[0][0] < second.vertices[-1][0] < 3
    thick = figure.axes[0].collections[0].get_linewidths()
    assert thick[1] > thick[0] and len(figure.axes[0].patches) == 6


def test_twenty_tasks_in_many_spaces_are_drawn() -> None:
    widths = {f"layer{i}": [8] * 20 for i in range(18)}
    figure = draw_widths(widths, 20)
    assert len(figure.axes[0].patches) == 18 * 20
