"""Time of an answer: medians by hand on a clock of its own, and what records without it give."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_fakes import FakeLearner, cell, record, scenario
from rich.console import Console

from firefly_cl.benchmark import plots
from firefly_cl.benchmark.cell import run_cell
from firefly_cl.benchmark.exports import as_csv, as_latex
from firefly_cl.benchmark.latency import BATCHES, measure, spread_tasks
from firefly_cl.benchmark.page import write_page
from firefly_cl.benchmark.quantities import milliseconds
from firefly_cl.benchmark.records import read_record, write_record
from firefly_cl.benchmark.report import print_tables, summaries

torch.set_num_threads(1)

LATENCY = {
    "tasks": [0, 2, 3],
    "milliseconds": {"1": [1.0, 2.0, 6.0], "128": [0.5, 0.5, 2.0]},
    "repeats": {"1": [25, 25, 25], "128": [5, 5, 5]},
    "dtype": "float32",
    "processor_share": 0.95,
}


class Timed:
    """A learner whose answers take times from a list, on a clock that nothing else moves."""

    def __init__(self, seconds: list[float], trained: int = 1) -> None:
        self.seconds = iter(seconds)
        self.tasks_trained = trained
        self.now = 0.0
        self.asked: list[tuple[int, int]] = []
        self.held = False

    def clock(self) -> float:
        return self.now

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self.held = True
        yield
        self.held = False

    def logits(self, task: int, images: torch.Tensor) -> torch.Tensor:
        assert self.held
        self.asked.append((task, len(images)))
        self.now += next(self.seconds)
        return torch.zeros(len(images), 2)


def test_the_time_is_the_median_of_the_repeats_without_the_first() -> None:
    # a share of 2 s / 2 for each batch size: three repeats of 0.4 s are over it
    one, many = [9.0, 0.5, 0.2, 0.4], [9.0, 1.28, 2.56, 5.12]
    learner = Timed([*one, *many])
    found = measure(learner, scenario(1), learner.clock)  # type: ignore[arg-type]
    assert found["tasks"] == [0] and found["dtype"] == "float32"
    assert found["milliseconds"] == {"1": [400.0], "128": [20.0]}
    assert found["repeats"] == {"1": [3], "128": [3]}
    # 20 training images are too few for a batch of 128: they come again
    assert learner.asked == [(0, 1)] * 4 + [(0, 128)] * 4
    assert found["processor_share"] >= 0 and not learner.held


def test_fast_answers_are_repeated_more_often() -> None:
    learner = Timed([0.05] * 1000)
    found = measure(learner, scenario(1), learner.clock)  # type: ignore[arg-type]
    assert found["repeats"] == {"1": [20], "128": [20]}  # until 1 s has passed
    learner = Timed([0.0] * 1000)
    found = measure(learner, scenario(1), learner.clock)  # type: ignore[arg-type]
    assert found["repeats"] == {"1": [25], "128": [25]}


def test_first_middle_and_newest_task_are_timed() -> None:
    assert [spread_tasks(n) for n in (1, 2, 3, 5, 20)] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 2, 4],
        [0, 10, 19],
    ]


def run(folder: Path, **changes: Any) -> Any:
    folder.mkdir()
    made = cell(**changes)
    return run_cell(made, scenario(), FakeLearner, folder, threads=1, progress=lambda p: None)


def test_a_finished_cell_is_timed_and_one_that_tries_settings_is_not(tmp_path: Path) -> None:
    found = run(tmp_path / "test")
    assert found.latency["tasks"] == [0, 1, 2]
    assert all(len(found.latency["milliseconds"][str(batch)]) == 3 for batch in BATCHES)
    assert all(0 < ms < 1000 for ms in found.latency["milliseconds"]["1"])
    assert "latency" not in found.seconds
    assert read_record(tmp_path / "test").latency == found.latency
    assert run(tmp_path / "validation", evaluate_on="validation").latency == {}


def test_records_without_it_are_read_and_drawn_as_before(tmp_path: Path) -> None:
    write_record(record(), tmp_path / "record.json")
    told = json.loads((tmp_path / "record.json").read_text())
    del told["latency"]
    (tmp_path / "record.json").write_text(json.dumps(told))
    old = read_record(tmp_path)
    assert old.latency == {}
    (group,) = summaries([old])
    assert "ms" not in group.table()[0]
    assert group.as_json()[0]["milliseconds"] == {"1": None, "128": None}
    new = replace(record("naive"), latency=LATENCY)
    (group,) = summaries([old, new])
    columns, rows = group.table()
    at = columns.index("ms")
    assert columns[at - 1] == "FLOPs" and {row[0]: row[at] for row in rows} == {
        "firefly": "-",
        "naive": "3.00",
    }


def test_tables_tell_the_mean_and_exports_the_newest_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "FIGURES", {})
    slower = {**LATENCY, "milliseconds": {"1": [2.0, 4.0, 6.0], "128": [1.0, 1.0, 1.0]}}
    records = [replace(record(), latency=LATENCY), replace(record(seed=1), latency=slower)]
    (group,) = summaries([*records, record("naive")])
    told = {each["strategy"]: each["milliseconds"] for each in group.as_json()}
    assert told == {"firefly": {"1": 3.5, "128": 1.0}, "naive": {"1": None, "128": None}}
    lines = sorted(csv.DictReader(io.StringIO(as_csv(group))), key=lambda line: line["strategy"])
    assert [line["mean_milliseconds_batch_1"] for line in lines] == ["3.0", "4.0", ""]
    assert [line["newest_milliseconds_batch_128"] for line in lines] == ["2.0", "1.0", ""]
    assert " & 3.50 & " in as_latex(group)
    page = tmp_path / "page.html"
    write_page(page, [group])
    text = page.read_text()
    heads = '<th scope="col">batch of 128</th>\n<th scope="col">newest task</th>'
    assert heads in text
    assert "<td>3.50</td><td>6.00</td><td>1.00</td><td>1.50</td><td>1</td><td>0.95</td>" in text


def test_disturbed_times_stand_on_the_page_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "FIGURES", {})
    busy = {**LATENCY, "processor_share": 0.5, "milliseconds": {"1": [9.0], "128": [8.0]}}
    records = [replace(record(), latency=LATENCY), replace(record(seed=1), latency=busy)]
    (group,) = summaries(records)
    columns, ((*cells,),) = group.table()
    assert cells[columns.index("ms")] == "3.00"  # the first seed's
    (group,) = summaries([replace(record(), latency=busy)])
    assert "ms" not in group.table()[0]
    page = tmp_path / "page.html"
    write_page(page, [group])
    assert "<td>9.00</td><td>9.00</td><td>8.00</td><td>8.00</td><td>1</td><td>0.50</td>" in (
        page.read_text()
    )
    (group,) = summaries(
        [replace(record(), latency=LATENCY, hardware={**record().hardware, "threads": 2})]
    )
    assert "ms" not in group.table()[0]  # one of the two threads had to wait
    elsewhere = replace(record(), latency=busy, hardware={**record().hardware, "device": "cuda"})
    assert "ms" in summaries([elsewhere])[0].table()[0]


def test_the_table_with_times_fits_80_columns() -> None:
    stream = io.StringIO()
    records = [
        replace(record(strategy, seed, 20), latency=LATENCY)
        for strategy in ("firefly", "individual", "naive")
        for seed in range(3)
    ]
    print_tables(summaries(records), Console(file=stream, width=80))
    whole = stream.getvalue()
    assert max(map(len, whole.splitlines())) <= 80
    assert "individual" in whole and "…" not in whole


@pytest.mark.parametrize(
    ("number", "printed"),
    [(None, "-"), (0.1234, "0.12"), (9.994, "9.99"), (12.34, "12.3"), (1234.5, "1234")],
)
def test_milliseconds(number: float | None, printed: str) -> None:
    assert milliseconds(number) == printed
