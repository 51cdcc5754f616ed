"""Class-incremental accuracy: answers picked by hand, the two rules, and what tables tell."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_fakes import FakeLearner, ResumableFake, cell, record, scenario
from rich.console import Console
from torch import Tensor

from firefly_cl.benchmark import figure_style, plots
from firefly_cl.benchmark.cell import run_cell
from firefly_cl.benchmark.class_incremental import LOGIT, PROBABILITY, evaluate, log_odds
from firefly_cl.benchmark.exports import as_csv, side_tables_latex
from firefly_cl.benchmark.markdown import redraw
from firefly_cl.benchmark.page import write_page
from firefly_cl.benchmark.records import read_record
from firefly_cl.benchmark.report import print_tables, summaries
from firefly_cl.errors import DivergenceError
from firefly_cl.scenarios import Images

torch.set_num_threads(1)


class ByHand:
    """Logits of each task for three images, which are told apart by their first pixel."""

    def __init__(self, *tables: list[list[float]]) -> None:
        self.tables = [torch.tensor(table) for table in tables]
        self.tasks_trained = len(tables)

    def logits(self, task: int, images: Tensor) -> Tensor:
        return self.tables[task][images[:, 0, 0, 0].long()]


class Heads(ByHand):
    """The same from heads of one trunk."""

    def all_logits(self, images: Tensor) -> list[Tensor]:
        return [self.logits(task, images) for task in range(self.tasks_trained)]


def three_images() -> Any:
    """Two tasks: images 0 (label 1) and 1 (label 0) are of the first, image 2 (label 1) is not."""
    made = scenario(2)

    def images(numbers: list[int], labels: list[int], task: int) -> Images:
        pixels = torch.tensor(numbers, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 4, 4)
        return Images(pixels, torch.tensor(labels), task)

    tests = images([0, 1], [1, 0], 0), images([2], [1], 1)
    tasks = [replace(task, test=test) for task, test in zip(made.tasks, tests, strict=True)]
    return replace(made, tasks=tuple(tasks))


FIRST = [[1.0, 4.0], [3.0, 0.0], [2.0, 1.0]]
SECOND = [[3.5, 3.0], [5.0, 4.0], [1.0, 5.0]]
# Image 0: the first task says class 1 by logit 4, and by p = 1/(1+e^-3) = 0.95; the second's
# greatest logit is 3.5, with p = 0.62. Right by both rules.
# Image 1: the second task has the greatest logit, 5; the first is the surer, 0.95 against 0.73.
# Image 2: the second task's class 1, by logit 5 and p = 0.98.


def test_heads_of_one_trunk_compete_by_logits() -> None:
    assert evaluate(Heads(FIRST, SECOND), three_images(), 2) == (LOGIT, [0.5, 1.0])  # type: ignore[arg-type]


def test_separate_functions_compete_by_probability() -> None:
    assert evaluate(ByHand(FIRST, SECOND), three_images(), 2) == (PROBABILITY, [1.0, 1.0])  # type: ignore[arg-type]


def test_what_is_not_seen_or_not_answered_is_left_out() -> None:
    learner = ByHand(FIRST, SECOND)
    assert evaluate(learner, three_images(), 1)[1] == [1.0, None]  # type: ignore[arg-type]
    learner.tasks_trained = 0
    assert evaluate(learner, three_images(), 1) == (None, [None, None])  # type: ignore[arg-type]


def test_a_rule_that_shares_no_function_falls_back_to_probabilities() -> None:
    class Apart(ByHand):
        def all_logits(self, images: Tensor) -> None:
            return None

    assert evaluate(Apart(FIRST, SECOND), three_images(), 2)[0] == PROBABILITY  # type: ignore[arg-type]


def test_a_sure_task_wins_where_probabilities_are_rounded_to_one() -> None:
    # both are 1.0 in double precision; the second is by far the surer
    learner = ByHand([[50.0, 0.0]] * 3, [[90.0, 0.0]] * 3)
    probabilities = torch.tensor([[50.0, 0.0], [90.0, 0.0]]).double().softmax(1)[:, 0]
    assert probabilities.tolist() == [1.0, 1.0]
    assert evaluate(learner, three_images(), 2)[1] == [0.0, 0.0]  # type: ignore[arg-type]
    labels = replace(three_images().tasks[1].test, labels=torch.tensor([0]))
    made = three_images()
    made = replace(made, tasks=(made.tasks[0], replace(made.tasks[1], test=labels)))
    assert evaluate(learner, made, 2)[1] == [0.0, 1.0]  # type: ignore[arg-type]


def test_log_odds_are_those_of_softmax() -> None:
    logits = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(1)
    torch.testing.assert_close(log_odds(logits), (p / (1 - p)).log())


def test_logits_that_are_not_finite_are_divergence() -> None:
    broken = [[float("nan"), 0.0]] * 3
    with pytest.raises(DivergenceError, match="task 1"):
        evaluate(ByHand(FIRST, broken), three_images(), 2)  # type: ignore[arg-type]


def run(folder: Path, **changes: Any) -> Any:
    folder.mkdir()
    made = cell(**changes)
    return run_cell(made, scenario(), FakeLearner, folder, threads=1, progress=lambda p: None)


def test_a_cell_records_it_beside_the_task_incremental_one(tmp_path: Path) -> None:
    found = run(tmp_path / "asked", class_incremental=True)
    # With the task told all is right. Without, tasks are alike but for the sign of the weight,
    # and equal scores go to the older task: of images 0 and 1, which have pixels 0 and 1 by
    # label (in task 1 the other way round), tasks answer (p - 0.5) * (-1, 1) or its mirror image,
    # so that task 0 always claims both classes, as sure as any other.
    assert found.accuracy[-1] == [1.0, 1.0, 1.0]
    assert found.class_incremental == {
        "rule": PROBABILITY,
        "accuracy": [[1.0, None, None], [1.0, 0.0, None], [1.0, 0.0, 0.0]],
    }
    assert read_record(tmp_path / "asked").class_incremental == found.class_incremental
    told = json.loads((tmp_path / "asked" / "record.json").read_text())
    assert told["configuration"]["class_incremental"] is True
    plain = run(tmp_path / "plain")
    assert plain.class_incremental == {} and "class_incremental" not in plain.configuration
    assert plain.accuracy == found.accuracy


def test_an_interrupted_run_goes_on_with_it(tmp_path: Path) -> None:
    def go(name: str, **options: str) -> Any:
        made = cell(class_incremental=True, options=options)
        quiet = lambda news: None  # noqa: E731
        return run_cell(made, scenario(), ResumableFake, tmp_path / name, threads=1, progress=quiet)

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("stopped", stop="1")
    assert go("stopped", stop="1").class_incremental == whole.class_incremental


BY_HAND = [[0.9, None, None], [0.5, 0.7, None], [0.4, 0.3, 0.8]]


def asked(strategy: str, seed: int = 0, lower: float = 0.0) -> Any:
    accuracy = [[None if v is None else v - lower for v in row] for row in BY_HAND]
    told = {"rule": PROBABILITY, "accuracy": accuracy}
    made = record(strategy, seed, n_tasks=3, class_incremental=True)
    return replace(made, class_incremental=told)


def test_tables_set_it_beside_the_task_incremental_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "class-incremental"
    monkeypatch.setattr(plots, "FIGURES", {name: plots.FIGURES[name]})
    (group,) = summaries([asked("firefly"), asked("firefly", 1, 0.1), asked("naive")])
    (side,) = group.side_tables()
    columns, rows = side.columns, side.rows
    assert side.name == "class-incremental" and columns[3:] == (
        "class-inc. %",
        "forgetting",
        "rule",
    )
    # (0.4 + 0.3 + 0.8) / 3 = 0.5, the other seed 0.4; (0.9 - 0.4 + 0.7 - 0.3) / 2 = 0.45
    told = {row[0]: row for row in rows}
    assert told["firefly"][3:] == ("45.0 ± 7.1", "45.0 ± 0.0", PROBABILITY)
    main = {row[0]: row for row in group.table()[1]}
    assert told["firefly"][1:3] == main["firefly"][2:4]
    lines = {
        (line["strategy"], line["seed"]): line
        for line in csv.DictReader(io.StringIO(as_csv(group)))
    }
    assert float(lines["firefly", "1"]["class_incremental_accuracy"]) == pytest.approx(0.4)
    assert float(lines["naive", "0"]["class_incremental_forgetting"]) == pytest.approx(0.45)
    written = write_page(tmp_path / "page.html", [group])
    names = {path.name for path in written}
    assert "page-split-digits-class-incremental.tex" in names
    assert "page-split-digits-class-incremental.png" in names
    assert "45.0 ± 7.1" in (tmp_path / "page.html").read_text()
    redraw(tmp_path / "page.md", [group])
    text = (tmp_path / "page.md").read_text()
    assert "<!-- table:split-digits/class-incremental -->\n| strategy | task-inc. % |" in text
    stream = io.StringIO()
    print_tables([group], Console(file=stream, width=80))
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    assert "without" in stream.getvalue() and "45.0 ± 7.1" in stream.getvalue()


def test_nothing_is_told_where_nothing_was_asked(tmp_path: Path) -> None:
    (group,) = summaries([record(n_tasks=3)])
    assert group.side_tables() == [] and side_tables_latex(group) == {}
    assert "class_incremental_accuracy" not in group.as_json()[0]
    (line,) = csv.DictReader(io.StringIO(as_csv(group)))
    assert line["class_incremental_accuracy"] == ""
    assert plots.FIGURES["class-incremental"][1](group, figure_style.WIDE) is None
