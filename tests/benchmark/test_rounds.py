"""`firefly-cl grow`: rounds of training and growth on one dataset, compared between criteria."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_fakes import record as tidy

from firefly_cl import cli
from firefly_cl.benchmark.growth_steps import STEP_COLUMNS
from firefly_cl.benchmark.markdown import redraw
from firefly_cl.benchmark.plan import Request, cells_of
from firefly_cl.benchmark.records import read_record
from firefly_cl.benchmark.report import summaries
from firefly_cl.benchmark.rounds import DATASETS, growth_requests
from firefly_cl.benchmark.summary import GROWTH_COLUMNS
from firefly_cl.continual.recipe import Recipe
from firefly_cl.scenarios import SCENARIOS
from firefly_cl.zoo import BACKBONES

COMMON = Request(scenario="", strategies=(), seeds=(0, 1), epochs=3)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("growth")
    command = ["grow", "--rounds", "2", "--epochs", "2", "--seeds", "0,1", "--threads", "1"]
    command += ["--setting", "firefly.steps=2"]
    assert cli.execute(cli._parse([*command, "--out", str(out)])) == 0
    return out


def test_criteria_get_the_same_network_budget_and_epochs() -> None:
    requests = growth_requests(COMMON, "digits", ["firefly", "firefly"], 3, 0.5, "flops")
    one, other = (cells_of(request) for request in requests)
    assert one == other
    assert [cell.seed for cell in one] == [0, 1]
    cell = one[0]
    assert cell.recipe["epochs"] == 12 and cell.split_into == 1
    shares = [float(share) for share in cell.options["grow_at"].split(",")]
    assert [round(share * 12) for share in shares] == [3, 6, 9]
    assert (cell.options["growth"], cell.options["cost"]) == ("0.5", "flops")


@pytest.mark.parametrize("data", DATASETS)
def test_every_dataset_has_a_seed_network(data: str) -> None:
    (request,) = growth_requests(COMMON, data, ["firefly"], 1, 0.2, "units")
    cell = cells_of(request)[0]
    assert cell.scenario in SCENARIOS.names() and cell.backbone in BACKBONES.names()
    assert cell.constant_width and Recipe().mixup == cell.recipe["mixup"] == 0


def test_a_width_replaces_the_constant_one() -> None:
    wide = Request(scenario="", strategies=(), seeds=(0,), width=0.5)
    (request,) = growth_requests(wide, "cifar10", ["firefly"], 1, 0.2, "units")
    cell = cells_of(request)[0]
    assert (cell.width, cell.constant_width) == (0.5, None)


def test_settings_go_to_their_criterion() -> None:
    common = replace(COMMON, settings=("steps=3", "firefly.steps=2", "firefly.reach=0.2"))
    criteria = ["firefly", "gradmax"]
    own = [
        {k: v for k, v in cells_of(request)[0].options.items() if k.startswith("settings.")}
        for request in growth_requests(common, "digits", criteria, 1, 0.2, "units")
    ]
    assert own == [{"settings.steps": "2", "settings.reach": "0.2"}, {"settings.steps": "3"}]


def test_settings_are_told_beside_the_criterion(grown: Path) -> None:
    record = read_record(grown / "firefly" / "split-digits" / "firefly-seed0")
    configuration = record.configuration
    changed = {**configuration["options"], "settings.reach": "0.2", "settings.steps": "4"}
    plain = {k: v for k, v in changed.items() if not k.startswith("settings.")}
    others = [changed, {**plain, "criterion": "random"}]
    records = [record] + [
        replace(record, configuration={**configuration, "options": options}) for options in others
    ]
    (group,) = summaries(records)
    labels = sorted(summary.label for summary in group.summaries)
    assert labels == ["firefly (steps=2)", "firefly (steps=4, reach=0.2)", "random"]


def test_rounds_grow_to_the_planned_size_and_are_told(grown: Path) -> None:
    record = read_record(grown / "firefly" / "split-digits" / "firefly-seed0")
    first, second = record.growth_events
    assert [first["epoch"], second["epoch"]] == [2, 4]
    assert first["parameters_before"] < first["parameters"] == second["parameters_before"]
    assert second["parameters"] == record.parameters
    assert record.configuration["options"]["criterion"] == "firefly"
    assert record.configuration["options"]["settings.steps"] == "2"
    (group,) = summaries([replace(record, latency={})])
    columns, rows = group.table()
    assert group.grows and columns == GROWTH_COLUMNS
    assert len(rows[0]) == len(columns)


def test_growth_of_each_backbone_has_a_table_beside_that_of_the_stream(grown: Path) -> None:
    record = read_record(grown / "firefly" / "split-digits" / "firefly-seed0")
    other = replace(record, configuration={**record.configuration, "backbone": "vgg19"})
    stream = tidy(n_tasks=5)
    groups = {group.name: group for group in summaries([other, stream, record])}
    assert set(groups) == {"split-digits", "split-digits/growth-mlp", "split-digits/growth-vgg19"}
    assert not groups["split-digits"].grows
    assert groups["split-digits/growth-vgg19"].title == "split-digits, growth of vgg19"
    labels = [[s.label for s in group.summaries] for group in groups.values()]
    assert labels == [["firefly"]] * 3


def test_growth_is_reported(
    grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert cli.execute(cli._parse(["report", str(grown), "--html", str(page)])) == 0
    printed = capsys.readouterr().out
    assert "obtained %" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("wrote"))
    text = page.read_text(encoding="utf-8")
    assert "Accuracy against size, round by round" in text and "Accuracy over tasks" not in text
    assert (tmp_path / "report-split-digits-growth-mlp-rounds.png").exists()


def test_steps_are_set_beside_the_training_that_follows(grown: Path, tmp_path: Path) -> None:
    """Of the first step only, for none follows the second."""
    folder = grown / "firefly" / "split-digits"
    records = [read_record(folder / f"firefly-seed{seed}") for seed in (0, 1)]
    for record, falls in zip(records, (0.3, 0.5), strict=True):
        first, second = record.growth_events
        first |= {"predicted_decrease": 0.08, "obtained_decrease": 0.05, "validation_loss": 0.9}
        second |= {"predicted_decrease": 0.04, "obtained_decrease": -0.03}
        second["validation_loss"] = 0.9 - falls
    (group,) = summaries(records)
    (side,) = group.side_tables()
    assert side.name == "steps" and side.columns == STEP_COLUMNS
    # promised (0.08 + 0.04) / 2, obtained (0.05 - 0.03) / 2, training (0.3 + 0.5) / 2; 0.1 / 0.8
    assert side.rows == [("firefly", "2", "0.0600", "0.0100", "0.4000", "12.5")]
    page = tmp_path / "page.md"
    redraw(page, [group])
    assert "<!-- table:split-digits/growth-mlp/steps -->" in page.read_text()


def test_a_single_step_is_set_beside_nothing(grown: Path) -> None:
    record = read_record(grown / "firefly" / "split-digits" / "firefly-seed0")
    event = {**record.growth_events[0], "predicted_decrease": 0.0, "obtained_decrease": -1e-9}
    (row,) = summaries([replace(record, growth_events=[event])])[0].side_tables()[0].rows
    assert row == ("firefly", "1", "-", "0.0000", "-", "-")


def test_what_is_grown_is_not_grown_again(grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["grow", "--rounds", "2", "--epochs", "2", "--threads", "1", "--out", str(grown)]
    command += ["--setting", "steps=2"]
    assert cli.execute(cli._parse([*command, "--json"])) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [run["skipped"] for run in told["runs"]] == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "cifar"), "choose from digits, cifar10, cifar100, folder"),
        (("--criterion", "fireflies"), "did you mean 'firefly'"),
        (("--rounds", "0"), "--rounds is 0: give 1 or more"),
        (("--growth", "0"), "give a share above 0"),
        (("--cost", "dollars"), "use units, parameters, flops"),
        (("--epochs", "0"), "--epochs is 0: give 1 or more"),
        (("--setting", "raech=1"), "unknown firefly setting 'raech': did you mean 'reach'?"),
        (("--setting", "tiny.reach=1"), "'tiny', which is not run: write one of firefly before"),
        (("--criterion", "random,net2net", "--setting", "reach=1"), "unknown net2net setting"),
        (("--option", "criterion=tiny"), "--option criterion follows from --criterion here"),
        (("--option", "firefly.grow-at=0.3"), "--option grow_at follows from --rounds here"),
        (("--recipe", "epochs=3"), "--recipe epochs is --epochs here, of each training"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.execute(cli._parse(["grow", *arguments, "--out", str(tmp_path / "out")])) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
