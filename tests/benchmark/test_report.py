"""Tables: grouped by protocol and configuration, means by hand, Markdown redrawn in place."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_fakes import record
from rich.console import Console

from firefly_cl.benchmark import plots
from firefly_cl.benchmark.configuration import recipe_as_json
from firefly_cl.benchmark.labels import row_digest
from firefly_cl.benchmark.markdown import redraw
from firefly_cl.benchmark.page import write_page
from firefly_cl.benchmark.quantities import count, duration, percent, percent_over, size
from firefly_cl.benchmark.records import Record
from firefly_cl.benchmark.report import print_tables, summaries
from firefly_cl.benchmark.text_table import broken
from firefly_cl.continual.recipe import Recipe
from firefly_cl.errors import FileError


@pytest.mark.parametrize(
    ("number", "printed"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.00k"),
        (12_345, "12.3k"),
        (999_499, "999k"),
        (1e6, "1.00M"),
    ],
)
def test_counts(number: float, printed: str):
    assert count(number) == printed


def test_other_quantities():
    assert [size(n) for n in (12, 4096, 2.5e9)] == ["12 B", "4.10 kB", "2.50 GB"]
    assert [duration(s) for s in (0.25, 42, 100, 3000, 9000)] == [
        "0.2 s",
        "42 s",
        "1.7 min",
        "50 min",
        "2.5 h",
    ]
    assert [percent(f) for f in (None, 0.0, 0.12345, -0.0001)] == ["-", "0", "12.3", "0.0"]


def test_percent_over_seeds():
    assert percent_over([0.5]) == "50.0"
    assert percent_over([0.50, 0.52, 0.54]) == "52.0 ± 2.0"  # sample deviation, by hand
    assert percent_over([0.0, 0.0]) == "0"  # exactly nothing, not a rounded something
    assert percent_over([0.0, 0.00001]) == "0.0 ± 0.0"
    assert percent_over([0.01, -0.01]) == "0.0 ± 1.4"
    assert percent_over([None]) == "-"


def test_numbers_that_are_equal_make_one_configuration() -> None:
    recipes = ({"epochs": 4, "mixup": 0}, {"epochs": 4.0, "mixup": 0.0})
    found = [record("naive", seed, recipe=recipe) for seed, recipe in enumerate(recipes)]
    (group,) = summaries([*found, record("naive", 0, recipe={"epochs": 5, "mixup": 0})])
    assert {(row.label, len(row.records)) for row in group.summaries} == {
        ("naive (epochs=4)", 2),
        ("naive (epochs=5)", 1),
    }


def test_seeds_from_before_a_field_of_the_recipe_make_one_configuration() -> None:
    new = recipe_as_json(Recipe(epochs=4))
    old = {name: value for name, value in new.items() if name != "mirrored"}
    one, two = record("naive", 0, recipe=old), record("naive", 1, recipe=new)
    (group,) = summaries([one, two])
    assert [(row.label, row.seeds) for row in group.summaries] == [("naive", [0, 1])]
    (group,) = summaries([one, two, record("naive", recipe={**new, "mirrored": True})])
    labels = {row.label for row in group.summaries}
    assert labels == {"naive (mirrored=False)", "naive (mirrored=True)"}


def test_runs_on_different_images_are_not_compared() -> None:
    other = replace(record("naive", 0), data={"sha256": "cd", "images": {"train": 10}})
    summaries([record("firefly", 1), other])  # another seed has other images anyway
    with pytest.raises(FileError, match=r"firefly and naive of .*, seed 0, .* report them apart"):
        summaries([record("firefly", 0), other])


def test_seeds_are_averaged_and_strategies_ranked():
    records = [
        replace(record(strategy, seed), average_accuracy=accuracy)
        for strategy, seed, accuracy in (
            ("naive", 0, 0.4),
            ("firefly", 1, 0.9),
            ("firefly", 0, 0.8),
            ("naive", 1, 0.5),
        )
    ]
    (group,) = summaries(records)
    assert [summary.label for summary in group.summaries] == ["firefly", "naive"]
    assert group.summaries[0].seeds == [0, 1]
    assert group.as_json()[0]["average_accuracy"] == pytest.approx(0.85)
    assert group.summaries[0].row()[2] == "85.0 ± 7.1"


def test_protocols_are_never_mixed():
    groups = summaries(
        [
            record(n_tasks=4),
            record(n_tasks=8),
            record(n_tasks=4, scenario_name="split-cifar10"),
            record(n_tasks=4, split_into=4),
        ]
    )
    assert [group.name for group in groups] == [
        "split-cifar10",
        "split-digits/4-tasks",
        "split-digits/4-tasks-2",
        "split-digits/8-tasks",
    ]


def test_configurations_of_one_strategy_are_told_apart():
    (group,) = summaries([record(width=1.0), record(width=0.5), record("naive")])
    assert sorted(summary.label for summary in group.summaries) == [
        "firefly (width=0.5)",
        "firefly (width=1.0)",
        "naive",
    ]


def on_one_task(told: str, seed: int = 0, width: float = 1.0, **options: str) -> Record:
    """A record of one task whose events tell of growth steps, or of prunings."""
    event = {told: 0.1, "parameters_before": 5}
    made = record("firefly", seed, 1, options=options, width=width)
    return replace(made, growth_events=[event])


def test_growth_and_pruning_alone_are_named_by_what_they_are_about():
    for given, label in (
        (on_one_task("predicted_decrease", criterion="uniform"), "uniform"),
        (on_one_task("predicted_decrease"), "firefly"),
        (on_one_task("removed", lam="0.001", prune_at="0.5"), "lam 0.001"),
        (record("firefly", options={"criterion": "uniform"}), "firefly"),  # a stream of tasks
        (record("firefly", n_tasks=1, options={"lam": "0.001"}), "firefly"),  # nothing pruned
    ):
        (group,) = summaries([given])
        assert [summary.label for summary in group.summaries] == [label]
        assert group.table()[1][0][0] == label


def test_settings_that_differ_stand_beside_what_a_run_is_about():
    for told, options, labels in (
        ("predicted_decrease", {"criterion": "uniform"}, ["uniform (width=0.5)", "uniform"]),
        ("removed", {"lam": "0.001"}, ["lam 0.001 (width=0.5)", "lam 0.001"]),
    ):
        small = on_one_task(told, width=0.5, **options)
        other = on_one_task(told, 1, width=0.5, **options)
        (group,) = summaries([small, other])
        assert [summary.label for summary in group.summaries] == [labels[1]]
        (group,) = summaries([small, on_one_task(told, **options)])
        assert labels[0] in [summary.label for summary in group.summaries]


def test_rows_are_called_by_names_of_their_own():
    plain, small, criterion = (
        record(**changes) for changes in ({}, {"width": 0.5}, {"options": {"criterion": "uniform"}})
    )
    wide = record("naive", width=2.0)
    rows = [("base", each.configuration) for each in (plain, small)]
    rows += [("no-gradients", criterion.configuration), ("naive", record("naive").configuration)]
    (group,) = summaries([plain, small, criterion, wide], rows)
    assert sorted(summary.label for summary in group.summaries) == [
        "base (width=0.5)",
        "base (width=1.0)",
        "naive (width=2.0)",  # which the row of that name has not
        "no-gradients",
    ]
    other_seed = {**plain.configuration, "seed": 7}
    assert row_digest(other_seed) == row_digest(plain.configuration)


@pytest.mark.parametrize(
    ("label", "width", "lines"),
    [
        ("individual", 10, ["individual"]),
        ("firefly (width=0.5, lam=1e-05)", 14, ["firefly", "(width=0.5,", "lam=1e-05)"]),
        ("firefly (a=1, b=2)", 13, ["firefly (a=1,", "b=2)"]),
        ("growth-firefly", 10, ["growth-", "firefly"]),
        ("no-op (learning_rate=0.125)", 12, ["no-op", "(learning_", "rate=0.125)"]),
        ("lam=0.000000000125", 10, ["lam=", "0.000000000125"]),
    ],
)
def test_labels_are_broken_between_words(label: str, width: int, lines: list[str]):
    assert broken(label, width).split("\n") == lines


def test_long_labels_are_printed_whole():
    rows = [
        (name, record(width=width).configuration)
        for width, name in ((0.5, "growth-firefly"), (0.25, "[bold]no-mixing"))
    ]
    given = [record(width=width) for width in (1.0, 0.5, 0.25)]
    stream = io.StringIO()
    print_tables(summaries(given, rows), Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    words = [line.split()[0] for line in lines if line.strip()]
    assert {"firefly", "growth-", "[bold]no-", "mixing"} <= set(words)


def test_a_copied_run_counts_once():
    (group,) = summaries([record(), record()])
    assert group.summaries[0].row()[1] == "1"


def test_the_matrix_is_the_mean_over_seeds():
    one = replace(record(n_tasks=2), accuracy=[[0.5, None], [0.5, 0.75]])
    two = replace(record(n_tasks=2, seed=1), accuracy=[[1.0, None], [0.0, 0.25]])
    (group,) = summaries([one, two])
    assert group.summaries[0].matrix() == [[0.75, None], [0.25, 0.5]]
    assert group.summaries[0].curves() == [[0.5, 0.625], [1.0, 0.125]]


def test_the_table_fits_80_columns():
    stream = io.StringIO()
    records = [
        record(strategy, seed, 20, "split-cifar100-superclass")
        for strategy in ("firefly", "individual", "naive")
        for seed in range(3)
    ]
    records += [record("firefly", 0, 20, "split-cifar100-superclass", width=0.125)]
    print_tables(summaries(records), Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    whole = stream.getvalue()
    assert "forgetting %" in whole and "individual" in whole and "…" not in whole


TEXT = """# Title

<!-- table:split-digits -->
old
<!-- /table -->

Write `<!-- table:NAME -->` where a table shall stand.

<!-- table:another -->
kept
<!-- /table -->
"""


def test_markdown_is_redrawn_between_its_markers(tmp_path: Path):
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    groups = summaries([record(), record("naive")])
    redraw(path, groups)
    once = path.read_bytes()
    redraw(path, groups)
    assert path.read_bytes() == once
    text = once.decode()
    assert "old" not in text and "\nkept\n" in text and "| firefly | 1 |" in text
    # nothing outside the markers has changed
    start, end = "<!-- table:split-digits -->\n", "<!-- /table -->"
    assert text.partition(start)[0] == TEXT.partition(start)[0]
    assert text.partition(end)[2] == TEXT.partition(end)[2]


def test_markdown_keeps_line_ends(tmp_path: Path):
    path = tmp_path / "README.md"
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    redraw(path, summaries([record()]))
    content = path.read_bytes()
    assert content.count(b"\n") == content.count(b"\r\n") > 10


def test_a_new_markdown_file_gets_every_table(tmp_path: Path):
    path = tmp_path / "results.md"
    groups = summaries([record(), record(n_tasks=2)])
    redraw(path, groups)
    once = path.read_text()
    assert once.count("| firefly |") == 2
    redraw(path, groups)
    assert path.read_text() == once


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no markers\n", "no marker for split-digits"),
        ("<!-- table:split-digits -->\n", "without its partner"),
        (
            "<!-- table:split-digits -->\n<!-- table:b -->\n<!-- /table -->\n<!-- /table -->\n",
            "without its partner",
        ),
    ],
)
def test_markdown_without_fitting_markers_is_refused_and_kept(tmp_path: Path, text: str, says: str):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(FileError, match=says):
        redraw(path, summaries([record()]))
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("n_tasks", "scenario", "configuration", "told"),
    [
        (20, "split-cifar100-superclass", {}, "80.9"),
        (20, "split-cifar100", {}, "90.8"),
        (20, "split-cifar100", {"tasks": 20}, "90.8"),
        (19, "split-cifar100-superclass", {"tasks": 19}, ""),
        (10, "split-cifar100", {"tasks": 10}, ""),
        (20, "split-cifar100", {"tasks": 20, "split_into": 50}, ""),
        (20, "split-cifar100-superclass", {"evaluate_on": "validation"}, ""),
    ],
)
def test_published_figures_stand_only_below_their_own_protocol(
    n_tasks: int,
    scenario: str,
    configuration: dict[str, Any],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(plots, "FIGURES", {})
    one = record("firefly", 0, n_tasks, scenario, **configuration)
    groups = summaries([one])
    redraw(tmp_path / "table.md", groups)
    rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if "|" in line]
    assert len({row.count("|") for row in rows}) == 1
    published = [row for row in rows if "(published)" in row]
    write_page(tmp_path / "page.html", groups)
    page = (tmp_path / "page.html").read_text()
    if told:
        assert any(f"| CPG, VGG16 (published) |  | {told} |" in row for row in published)
        assert "Published: Model Zoo, with replay: Ramesh" in page
    else:
        assert not published and "Published: " not in page
