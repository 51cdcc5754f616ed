"""Records: arithmetic by hand, writes that survive a crash, damaged files refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_fakes import record

from firefly_cl import cli
from firefly_cl.benchmark.records import (
    SCHEMA,
    average_accuracy,
    average_forgetting,
    find_records,
    read_record,
    write_atomic,
    write_record,
)
from firefly_cl.errors import FileError

# Task 0 peaks after task 1 (0.95), task 1 at once (0.8).
BY_HAND = [[0.9, None, None], [0.95, 0.8, None], [0.7, 0.75, 0.6]]


def test_average_accuracy_is_the_mean_of_the_last_row():
    assert average_accuracy(BY_HAND) == pytest.approx((0.7 + 0.75 + 0.6) / 3)
    assert average_accuracy(BY_HAND[:2]) == pytest.approx((0.95 + 0.8) / 2)
    assert average_accuracy([]) is None


def test_average_forgetting_is_the_mean_drop_from_the_best():
    assert average_forgetting(BY_HAND) == pytest.approx(((0.95 - 0.7) + (0.8 - 0.75)) / 2)
    assert average_forgetting([[0.5]]) == 0.0
    assert average_forgetting([]) is None


def test_forgetting_of_unchanged_accuracies_is_exactly_zero():
    assert average_forgetting([[0.1, None], [0.1, 0.3]]) == 0.0


def test_forgetting_is_negative_where_later_tasks_helped():
    assert average_forgetting([[0.5, None], [0.75, 0.6]]) == -0.25


def test_a_learner_that_waits_for_the_last_task_has_no_forgetting():
    waiting = [[None, None], [0.5, 0.75]]
    assert average_forgetting(waiting) is None
    assert average_accuracy(waiting) == 0.625
    assert average_accuracy(waiting[:1]) is None


def test_forgetting_counts_the_tasks_known_before_the_last():
    assert average_forgetting([[None] * 3, [0.9, None, None], [0.5, 0.7, 0.8]]) == pytest.approx(
        0.4
    )


def test_record_round_trip_is_exact(tmp_path: Path):
    # thirds and tenths have no short binary form
    original = record(n_tasks=3)
    accuracy = [[1 / 3, None, None], [0.1, 2 / 3, None], [1 / 7, 0.3, 0.7]]
    original = replace(original, accuracy=accuracy)
    write_record(original, tmp_path / "record.json")
    assert read_record(tmp_path).accuracy == accuracy
    assert read_record(tmp_path / "record.json") == replace(
        original, configuration=dict(original.configuration)
    )


def test_record_is_strict_json(tmp_path: Path):
    events = [{"score": float("inf"), "loss": float("nan"), "units": (1, 2)}]
    write_record(replace(record(), growth_events=events), tmp_path / "record.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((tmp_path / "record.json").read_text(), parse_constant=refuse)
    assert content["growth_events"] == [{"score": None, "loss": None, "units": [1, 2]}]


def test_an_accuracy_row_stands_on_one_line(tmp_path: Path):
    write_record(replace(record(), accuracy=[[0.25, None], [0.5, 1.0]]), tmp_path / "record.json")
    assert "[0.25, null]" in (tmp_path / "record.json").read_text()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    path = tmp_path / "record.json"
    write_atomic(path, b"old")

    def crash(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new and longer")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_the_new_content_is_synced_before_it_replaces_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, order = tmp_path / "record.json", []
    fsync, os_replace = os.fsync, os.replace

    def syncing(handle: int) -> None:
        order.append("fsync")
        fsync(handle)

    def replacing(source: Path, target: Path) -> None:
        order.append("replace")
        os_replace(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    write_atomic(path, b"new")
    assert order[:2] == ["fsync", "replace"]


def test_a_full_disk_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left") as caught:
        write_atomic(tmp_path / "record.json", b"x")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def damaged(tmp_path: Path, content: bytes) -> str:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_record(tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_truncated_record_is_refused(tmp_path: Path):
    write_record(record(), tmp_path / "record.json")
    whole = (tmp_path / "record.json").read_bytes()
    assert "damaged" in damaged(tmp_path, whole[: len(whole) // 2])


def test_a_newer_schema_is_refused(tmp_path: Path):
    write_record(replace(record(), schema=SCHEMA + 1), tmp_path / "record.json")
    message = damaged(tmp_path, (tmp_path / "record.json").read_bytes())
    assert "newer" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[]", "no schema"),
        (b"\xff\xfe", "damaged"),
        (b'{"schema": 1}', "'configuration'"),
        (b'{"schema": true, "x": 1}', "'configuration'"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: bytes, says: str):
    assert says in damaged(tmp_path, content)


def test_a_value_of_the_wrong_kind_is_refused(tmp_path: Path):
    write_record(record(), tmp_path / "record.json")
    content = json.loads((tmp_path / "record.json").read_text())
    content["accuracy"] = "high"
    assert "'accuracy' is a str" in damaged(tmp_path, json.dumps(content).encode())


STEP = {"predicted_decrease": 0.1, "parameters_before": 5, "flops_before": 9}


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("configuration.strategy", None, "no configuration 'strategy'"),
        ("configuration.scenario", 3, "configuration 'scenario' is a int"),
        ("configuration.backbone", [], "configuration 'backbone' is a list"),
        ("configuration.options", "x", "configuration 'options' is a str"),
        ("configuration.recipe", None, "no configuration 'recipe'"),
        ("hardware.threads", None, "no hardware 'threads'"),
        ("tasks", [], "'tasks' is not a list of names"),
        ("accuracy", [[0.5]], "'accuracy' does not have a row for each of 2 tasks"),
        ("accuracy", [[0.5], [0.5, 0.5]], "'accuracy' has a row that is not of 2 tasks"),
        ("accuracy", [0.5, 0.5], "'accuracy' has a row that is not of 2 tasks"),
        ("validation_accuracy", [["x", None], [1, 1]], "'validation_accuracy' has 'x' in place"),
        ("average_accuracy", "null", "'average_accuracy' is missing"),
        ("flops", ["many"], "'flops' has 'many' in place of a number"),
        ("flops", [], "'flops' is empty"),
        ("parameters_by_task", [1, "null"], "'parameters_by_task' has None in place of a number"),
        ("parameters_by_task", [1], "'parameters_by_task' has 1 values for 2 tasks"),
        ("bytes_by_task", [True, 1], "'bytes_by_task' has True in place of a number"),
        ("seconds.train", "long", "'seconds' has 'long' in place of a number"),
        ("growth_events", ["grown"], "'growth_events' has 'grown' in place of an event"),
        ("growth_events", [{"predicted_decrease": 1}], "no growth_events 'parameters_before'"),
        ("growth_events", [{**STEP, "obtained_decrease": "x"}], "'growth_events' has 'x' in"),
        ("widths.first", 16, "'widths' has 16 in place of a list"),
        ("reuse", [[1], ["x"]], "'reuse' has 'x' in place of a number"),
        ("class_incremental", {"rule": "logits"}, "no class_incremental 'accuracy'"),
        ("class_incremental", {"rule": "logits", "accuracy": [[1]]}, "does not have a row for"),
        ("latency", {"milliseconds": {"1": [1.0]}}, "no latency 'processor_share'"),
        ("latency", {"milliseconds": {"1": 2}, "processor_share": 1}, "that are not a list"),
    ],
)
def test_wrong_contents_are_damage(tmp_path: Path, place: str, value: object, says: str):
    """A value that is None is left out; "null" stands for one that is null."""
    write_record(record(n_tasks=2), tmp_path / "record.json")
    content = json.loads((tmp_path / "record.json").read_text())
    *path, last = place.split(".")
    inside = content[path[0]] if path else content
    inside[last] = json.loads(json.dumps(value).replace('"null"', "null"))
    if value is None:
        del inside[last]
    message = damaged(tmp_path, json.dumps(content).encode())
    assert says in message and message.startswith(f"{tmp_path / 'record.json'} is damaged (")


def test_damage_is_told_by_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_record(replace(record(), configuration={"scenario": "x"}), tmp_path / "record.json")
    assert cli.execute(cli._parse(["report", str(tmp_path)])) == 2
    out = capsys.readouterr()
    assert out.err.startswith(f"error: {tmp_path / 'record.json'} is damaged (no configuration")


def test_what_runs_write_is_whole(tmp_path: Path):
    waiting = [[None, None], [0.5, 0.75]]
    step = {**STEP, "predicted_decrease": float("nan"), "validation_loss": None}
    begun = record(n_tasks=2)
    begun = replace(
        begun, finished=False, accuracy=[], validation_accuracy=[], average_accuracy=None
    )
    begun = replace(begun, parameters_by_task=[], bytes_by_task=[], flops=[], seconds={})
    timed = {"tasks": [0], "milliseconds": {"1": [0.5]}, "processor_share": 0.9}
    for good in (
        begun,
        replace(record(n_tasks=2), accuracy=waiting, latency=timed, growth_events=[step]),
        replace(record(n_tasks=2), class_incremental={"rule": "logits", "accuracy": waiting}),
    ):
        write_record(good, tmp_path / "record.json")
        assert read_record(tmp_path).finished == good.finished


@pytest.mark.parametrize("folder", ["records", "class_incremental"])
def test_shipped_records_are_whole(folder: str):
    found = find_records([Path(__file__).parents[2] / "benchmarks" / folder])
    assert all(read_record(path).finished for path in found)


def test_a_missing_record_says_what_to_name(tmp_path: Path):
    with pytest.raises(FileError, match="firefly-cl run"):
        read_record(tmp_path)


def test_find_records_finds_each_once(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_record(record(), tmp_path / name / "record.json")
    found = find_records([tmp_path, tmp_path / "a", tmp_path / "b" / "record.json"])
    assert found == [tmp_path / "a" / "record.json", tmp_path / "b" / "record.json"]
    with pytest.raises(FileError, match="does not exist"):
        find_records([tmp_path / "c"])
    (tmp_path / "c").mkdir()
    with pytest.raises(FileError, match="no record"):
        find_records([tmp_path / "c"])
