"""`firefly-cl prune`: training, gates and removal on one dataset, swept over prices of a unit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firefly_cl import cli
from firefly_cl.benchmark.plan import Request, cells_of
from firefly_cl.benchmark.records import Record, read_record
from firefly_cl.benchmark.report import summaries
from firefly_cl.benchmark.rounds import DATASETS
from firefly_cl.benchmark.summary import PRUNING_COLUMNS
from firefly_cl.benchmark.sweep import Step, parse_steps, pruning_requests
from firefly_cl.continual.plan import plan_of
from firefly_cl.continual.recipe import Recipe
from firefly_cl.zoo import BACKBONES

COMMON = Request(scenario="", strategies=(), seeds=(0, 1), epochs=3)
COMMAND = [
    *("prune", "--epochs", "2", "--rounds", "2", "--gate-epochs", "3", "--constant-width", "16"),
    *("--threads", "1", "--evaluate-on", "validation"),
]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruning")
    command = [*COMMAND, "--lam", "0,0.0205", "--out", str(out)]
    assert cli.execute(cli._parse(command)) == 0
    return out


def record_of(out: Path, lam: str) -> Record:
    return read_record(out / f"lam-{lam}" / "split-digits" / "firefly-seed0")


def test_prices_get_the_same_network_and_epochs() -> None:
    requests = pruning_requests(COMMON, "digits", [Step(1e-4), Step(1e-3)], 2, "flops", 5)
    cells = [cells_of(request) for request in requests]
    assert [cell.options.pop("lam") for pair in cells for cell in pair] == ["0.0001"] * 2 + [  # type: ignore[attr-defined]
        "0.001"
    ] * 2
    assert cells[0] == cells[1]
    cell = cells[0][0]
    assert cell.recipe["epochs"] == 9 and cell.split_into == 1
    shares = [float(share) for share in cell.options["prune_at"].split(",")]
    assert [round(share * 9) for share in shares] == [3, 6]
    assert (cell.options["gate_cost"], cell.options["gate_epochs"]) == ("flops", "5")
    assert cell.options["grow_at"] == ""


@pytest.mark.parametrize("data", DATASETS)
def test_every_dataset_has_a_network_to_prune(data: str) -> None:
    (request,) = pruning_requests(COMMON, data, [Step(1e-4)], 1, "units", 10)
    cell = cells_of(request)[0]
    assert cell.backbone in BACKBONES.names()
    assert Recipe().mixup == cell.recipe["mixup"] == 0


def test_units_are_gone_and_told(pruned: Path) -> None:
    record = record_of(pruned, "0.0205")
    first, second = record.growth_events
    assert [first["epoch"], second["epoch"]] == [2, 4]
    assert first["parameters_before"] > first["parameters"] == second["parameters_before"]
    assert second["parameters"] == record.parameters
    assert record.flops == [second["flops"]]
    assert {name: [units] for name, units in second["kept"].items()} == record.widths
    assert sum(first["removed"].values()) == first["kinds"]["prune"] > 0
    assert record.seconds["prune"] > 0
    dear, free = record.parameters, record_of(pruned, "0").parameters
    assert dear < free


def test_a_sweep_is_reported(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert cli.execute(cli._parse(["report", str(pruned), "--html", str(page)])) == 0
    printed = capsys.readouterr().out
    assert "kept %" in printed and "lam 0.0205" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("wrote"))
    text = page.read_text(encoding="utf-8")
    assert ">0.0205</text>" in text
    assert "Accuracy against size, price by price" in text and "Accuracy over tasks" not in text
    for figure in ("frontier", "frontier-flops"):
        assert (tmp_path / f"report-split-digits-{figure}.png").exists()
    (group,) = summaries([record_of(pruned, lam) for lam in ("0", "0.0205")])
    columns, rows = group.table()
    assert group.prunes and not group.grows
    assert columns == PRUNING_COLUMNS and all(len(row) == len(columns) for row in rows)


def test_what_is_pruned_is_not_pruned_again(
    pruned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*COMMAND, "--lam", "2.05e-2,0", "--out", str(pruned), "--json"]
    assert cli.execute(cli._parse(command)) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [run["skipped"] for run in told["runs"]] == [True, True]
    assert cli.execute(cli._parse([*command, "--gate-epochs", "4"])) == 2
    assert "holds a run with options.gate_epochs '3', not '4'" in capsys.readouterr().err


def test_prices_and_shares_are_read_once_each() -> None:
    assert parse_steps("1e-4, 0.0001,0,2e-3", None) == (Step(1e-4), Step(0.0), Step(2e-3))
    assert parse_steps(None, "1,.5, 0.50") == (Step(1.0, True), Step(0.5, True))
    assert parse_steps(None, None) == (Step(1e-4),)


def test_shares_of_several_rounds_make_the_one_asked_for() -> None:
    (request,) = pruning_requests(COMMON, "digits", [Step(0.25, True)], 2, "parameters", 5)
    options = cells_of(request)[0].options
    assert options["prune_keep"] == "0.25" and "lam" not in options
    assert plan_of(options).gates.share == pytest.approx(0.5)


def test_a_sweep_over_shares_ends_at_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = ["--keep", "1,0.3", "--cost", "parameters", "--out", str(tmp_path)]
    assert cli.execute(cli._parse([*COMMAND, *shares])) == 0
    printed = capsys.readouterr().out
    assert "keep 0.3" in printed and "keep 1" in printed
    kept = {
        share: read_record(tmp_path / f"keep-{share}" / "split-digits" / "firefly-seed0")
        for share in ("1", "0.3")
    }
    whole = kept["1"].growth_events[0]["parameters_before"]
    assert kept["1"].parameters == whole
    unit = 91  # floats of the dearest
    assert 0.3 * whole - 2 * unit < kept["0.3"].parameters <= 0.3 * whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lam", "-1e-4"), "--lam has '-1e-4': give prices of a unit from 0"),
        (("--lam", "1e-4,much"), "--lam has 'much'"),
        (("--lam", "inf"), "--lam has 'inf'"),
        (("--lam", ""), "--lam is empty: give one or more prices of a unit"),
        (("--keep", ""), "--keep is empty: give one or more shares"),
        (("--keep", "0"), "--keep has '0': give shares of the network's cost above 0"),
        (("--keep", "0.5,1.1"), "--keep has '1.1'"),
        (("--keep", "half"), "--keep has 'half'"),
        (("--keep", "0.5", "--lam", "1e-4"), "--keep finds the price itself: leave --lam out"),
        (("--keep", "0.5", "--option", "prune-tolerance=0.01"), "give one --lam to begin at"),
        (("--option", "prune-keep=0.1"), "--option prune_keep follows from --keep here"),
        (("--data", "cifar"), "choose from digits, cifar10, cifar100, folder"),
        (("--rounds", "0"), "--rounds is 0: give 1 or more"),
        (("--gate-epochs", "0"), "--gate-epochs is 0: give 1 or more"),
        (("--cost", "dollars"), "use units, parameters, flops"),
        (("--epochs", "0"), "--epochs is 0: give 1 or more"),
        (("--constant-width", "1"), "leaves nothing to prune"),
        (("--option", "lam=0.1"), "--option lam follows from --lam here"),
        (("--lam", "1e-4,1e-3", "--option", "prune-tolerance=0.01"), "give one --lam to begin at"),
        (("--setting", "reach=0.2"), "prune grows nothing"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["prune", *arguments, "--out", str(tmp_path / "out")]
    assert cli.execute(cli._parse(command)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
