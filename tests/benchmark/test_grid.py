"""Grids: from TOML to cells, and what is refused before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from firefly_cl.baselines.multihead import HeadOptions
from firefly_cl.benchmark.configuration import Cell, differences, digest, recipe_as_json
from firefly_cl.benchmark.grid import OF_SCENARIO, OF_STRATEGY, TRAINING, read_grid
from firefly_cl.benchmark.plan import Request, cells_of
from firefly_cl.benchmark.presets import Preset
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.recipe import Recipe
from firefly_cl.errors import FireflyError
from firefly_cl.zoo import BACKBONES

Write = Callable[[str], Path]

TWO = """
out = "kept"
seeds = [3, 1]
epochs = 4
recipe = { mixup = 0.2, augmentation = { cutout = 2 } }

[scenarios.split-digits]
tasks = 3
width = 1

[strategies.naive]
epochs = 5

[strategies.small]
strategy = "firefly"
width = 0.125
recipe.augmentation.crop_padding = 2
recipe.schedule = "cosine"
options = { growth = 0.5, grow-at = [0.3, 0.6], restart = true, cost = "flops" }
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "grid.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_nearer_tables_go_over_more_common_ones(write: Write):
    grid = read_grid(write(TWO))
    assert grid.out == Path("kept")
    assert [(c.strategy, c.cell.strategy, c.cell.seed) for c in grid.cells()] == [
        ("naive", "naive", 3),
        ("small", "firefly", 3),
        ("naive", "naive", 1),
        ("small", "firefly", 1),
    ]
    naive, small = [found.cell for found in grid.cells()][:2]
    assert (naive.tasks, naive.width, naive.recipe["epochs"]) == (3, 1.0, 5)
    assert (small.tasks, small.width, small.recipe["epochs"]) == (3, 0.125, 4)
    assert naive.recipe["mixup"] == small.recipe["mixup"] == 0.2
    assert (naive.recipe["schedule"], small.recipe["schedule"]) == ("one-cycle", "cosine")
    assert naive.recipe["augmentation"]["cutout"] == small.recipe["augmentation"]["cutout"] == 2
    assert naive.recipe["augmentation"]["crop_padding"] == 1  # the preset's
    assert small.recipe["augmentation"]["crop_padding"] == 2


def test_nearer_tables_go_over_others_that_say_it_in_another_way(write: Write):
    grid = read_grid(
        write(
            """
            epochs = 20
            learning-rate = 0.05
            width = 0.5
            [scenarios.split-digits]
            [strategies.naive]
            recipe = { learning_rate = 0.3, epochs = 2 }
            [strategies.ewc]
            constant-width = 8
            """
        )
    )
    naive, ewc = [found.cell for found in grid.cells()]
    assert (naive.recipe["learning_rate"], naive.recipe["epochs"]) == (0.3, 2)
    assert (ewc.recipe["learning_rate"], ewc.recipe["epochs"]) == (0.05, 20)
    assert (naive.constant_width, naive.width, ewc.constant_width) == (None, 0.5, 8)


def test_cells_are_those_of_the_command_line(write: Write):
    asked = Request(
        "split-digits",
        ("firefly",),
        (3, 1),
        tasks=3,
        epochs=4,
        width=0.125,
        recipe=(
            "mixup=0.2",
            "augmentation.cutout=2",
            "augmentation.crop_padding=2",
            "schedule=cosine",
        ),
        options=("growth=0.5", "grow-at=0.3,0.6", "restart=true", "cost=flops"),
    )
    found = [c.cell for c in read_grid(write(TWO)).cells() if c.strategy == "small"]
    assert found == cells_of(asked)


def test_a_strategy_may_differ_on_one_scenario(write: Write):
    grid = read_grid(
        write(
            """
            [scenarios.split-digits]
            [scenarios.two]
            scenario = "split-digits"
            split-into = 2
            strategies.ewc = { learning_rate = 0.3, options = { ewc_lambda = 7 } }
            [strategies.naive]
            [strategies.ewc]
            options = { norm = "shared", ewc_lambda = 5 }
            """
        )
    )
    assert [e.scenario for e in grid.entries] == ["split-digits"] * 2 + ["two"] * 2
    cells = {(found.scenario, found.strategy): found.cell for found in grid.cells()}
    assert cells["split-digits", "ewc"].options == {"norm": "shared", "ewc_lambda": "5"}
    assert cells["two", "ewc"].options == {"norm": "shared", "ewc_lambda": "7"}
    assert cells["two", "ewc"].recipe["learning_rate"] == 0.3
    rate = cells["split-digits", "naive"].recipe["learning_rate"]
    assert cells["split-digits", "ewc"].recipe["learning_rate"] == rate != 0.3
    assert cells["two", "naive"].recipe["learning_rate"] == rate
    assert (cells["two", "naive"].scenario, cells["two", "naive"].split_into) == ("split-digits", 2)


def test_a_preset_is_asked_for_by_name(write: Write):
    text = "preset = 'plain'\n[scenarios.split-digits]\n[strategies.firefly]\nbackbone = 'mlp'"
    (found,) = read_grid(write(text)).cells()
    request = Request("split-digits", ("firefly",), (0,), backbone="mlp", preset=Preset())
    assert [found.cell] == cells_of(request)


def test_all_cells_of_a_scenario_are_evaluated_class_incrementally_or_none(write: Write):
    grid = "[scenarios.split-digits]\n[strategies.naive]\n[strategies.firefly]"
    for text, asked in ((grid, False), (f"class-incremental = true\n{grid}", True)):
        cells = [found.cell for found in read_grid(write(text)).cells()]
        assert [cell.class_incremental for cell in cells] == [asked, asked]
        assert ["class_incremental" in cell.as_json() for cell in cells] == [asked, asked]


def test_settings_of_a_criterion(write: Write):
    text = "[scenarios.split-digits]\n[strategies.firefly]\nsettings.depths = 3"
    (found,) = read_grid(write(text)).cells()
    assert found.cell.options["settings.depths"] == "3"


def test_every_setting_of_a_request_has_its_place():
    known = {name.replace("-", "_") for name in (*TRAINING, *OF_SCENARIO, *OF_STRATEGY)}
    decided = {"scenario", "strategies", "seeds"}
    assert known == {field.name for field in fields(Request)} - decided


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the grid is empty: name its scenarios in tables"),
        ("seeds = []", "the grid is empty: name its scenarios"),
        ("seeds = []\n[scenarios.split-digits]\n[strategies.naive]", "give one or more seeds"),
        ("[scenarios.split-digits]", "the grid is empty: name its strategies"),
        ("seeds = [0", "is not TOML"),
        ("seed = [0]", "unknown key 'seed': did you mean 'seeds'?"),
        ("seeds = 3", "seeds is 3: give a list"),
        ("seeds = [0, -1]\n{grid}", "seeds has -1"),
        ("seeds = [true]\n{grid}", "seeds has True"),
        ("seeds = [0, 1, 0]\n{grid}", "seeds has 0 twice"),
        ("{grid}\nepoch = 3", "unknown key 'epoch' in [strategies.naive]: did you mean 'epochs'?"),
        ("{grid}\nepochs = '3'", "epochs in [strategies.naive] is '3': give a whole number"),
        ("{grid}\nepochs = true", "epochs in [strategies.naive] is True"),
        ("class-incremental = 1\n{grid}", "class-incremental is 1: give true or false"),
        ("{grid}\nepochs = 0", "'naive' on 'split-digits': --epochs is 0: give 1 or more"),
        ("{grid}\nbatch-size = 4\nbatch_size = 8", "is given twice"),
        ("{grid}\ntasks = 3", "'tasks' in [strategies.naive]: it belongs in [scenarios.NAME]"),
        ("{grid}\nout = 'x'", "'out' in [strategies.naive]: it belongs at the top"),
        ("options.mem_size = 3\n{grid}", "'options': it belongs in [strategies.NAME]"),
        ("{grid}\nsettings.x = 3", "naive has none"),
        ("{grid}\npreset = 'cifra'", "unknown preset 'cifra': did you mean 'cifar'?"),
        ("{grid}\noptions.x.y = 3", "options has a table 'x'"),
        ("{grid}\noptions.x = 2001-01-01", "options x is 2001-01-01: give a number"),
        ("{grid}\nrecipe.mixpu = 3", "no setting 'mixpu': did you mean 'mixup'?"),
        ("{grid}\nrecipe.mixup = -1", "'naive' on 'split-digits': mixup is -1"),
        ("[scenarios.split-digit]\n[strategies.naive]", "did you mean 'split-digits'?"),
        ("[scenarios.split-digits]\n[strategies.nave]", "did you mean 'naive'?"),
        ("[scenarios.split-digits]\n[strategies]\nnaive = 3", "make it a table"),
        (
            "{grid}\n[scenarios.split-digits.strategies.ewc]",
            "not in [strategies]: choose from naive",
        ),
        ("{grid}\n[strategies.firefly]\nsettings.x = 3", "'x'"),
        ("{grid}\n[strategies.ewc]\noptions.lamda = 3", "'ewc' on 'split-digits': "),
        ("{grid}\n[strategies.ewc]\noptions.ewc_lamda = 3", "did you mean 'ewc_lambda'?"),
        (
            "{grid}\n[strategies.again]\nstrategy = 'naive'",
            "'naive' on 'split-digits' and 'again' on 'split-digits' are one cell (",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_line(text: str, says: str, write: Write):
    path = write(text.replace("{grid}", "[scenarios.split-digits]\n[strategies.naive]"))
    with pytest.raises(FireflyError) as caught:
        read_grid(path).cells()
    message = str(caught.value)
    assert says in message and "\n" not in message
    assert message.startswith(str(path)) and message.count(str(path)) == 1


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(FireflyError, match="cannot read"):
        read_grid(tmp_path / "nothing.toml")
    (tmp_path / "latin.toml").write_bytes("# é".encode("latin-1"))
    with pytest.raises(FireflyError, match="not UTF-8"):
        read_grid(tmp_path / "latin.toml")


def test_a_digest_is_that_of_canonical_json():
    recipe = recipe_as_json(Recipe(epochs=2, learning_rate=1.0))
    cell = Cell("split-digits", "naive", 0, "mlp", width=1.0, recipe=recipe)
    text = (
        '{"backbone":"mlp","budget":null,"constant_width":null,"device":"cpu","options":{},'
        '"recipe":{"augmentation":{"crop_padding":4,"cutout":0,"flip":true,"jitter":0,'
        '"rotation":0,"warped":0.5,"zoom":0},"batch_size":64,"channels_last":null,"cutmix":0,'
        '"epochs":2,"head_rate":4,"label_smoothing":0.1,"learning_rate":1,"mirrored":false,'
        '"mixup":0,"momentum":0.9,"nesterov":true,"optimizer":"sgd","precision":"auto",'
        '"schedule":"one-cycle","shifted":0,"weight_decay":0.0005},"scenario":"split-digits","seed":0,'
        '"split_into":null,"strategy":"naive","tasks":null,"validation":0.1,"width":1}'
    )
    assert cell.digest() == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_configurations_have_one_digest_where_they_do_not_differ():
    cell = Cell("split-digits", "naive", 0, "mlp", recipe={"a": 2.0, "b": 0.5})
    same = replace(cell, width=1, recipe={"b": 0.5, "a": 2})
    kept = json.loads(json.dumps(cell.as_json()))  # as a record gives it back
    assert not differences(cell.as_json(), same.as_json())
    assert cell.digest() == same.digest() == digest(kept)
    others = [
        replace(cell, seed=1),
        replace(cell, evaluate_on="validation"),
        replace(cell, options={"x": "1"}),
        replace(cell, recipe={"a": 2.0, "b": 0.25}),
    ]
    assert len({cell.digest(), *(other.digest() for other in others)}) == 5


GRIDS = Path(__file__).parents[2] / "benchmarks"
SHIPPED = [GRIDS / name for name in ("split_cifar100.toml", "split_digits.toml")]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_grids_compare_firefly_with_baselines(path: Path):
    grid = read_grid(path)
    assert grid.out is not None and grid.out.parts[0] == "runs"  # which git ignores
    cells = grid.cells()
    seeds = {found.cell.seed for found in cells}
    for scenario in {found.scenario for found in cells}:
        here = [found for found in cells if found.scenario == scenario]
        compared = {found.cell.strategy for found in here}
        assert {"firefly", "naive", "individual", "joint", "ewc", "replay"} <= compared
        growth = [f.cell.options.get("criterion") for f in here if f.cell.strategy == "firefly"]
        assert growth.count("uniform") == len(seeds) and None in growth


def test_ablations_read_no_test_image_and_none_is_like_another():
    grid = read_grid(GRIDS / "ablations.toml")
    assert grid.out is not None and grid.out.parts[0] == "runs"
    cells = grid.cells()  # raises where two are one
    assert {found.cell.evaluate_on for found in cells} == {"validation"}
    assert {found.cell.seed for found in cells} == {0, 1, 2}
    rows = {found.strategy: found.cell for found in cells}
    shared = {f.strategy: f.cell for f in read_grid(GRIDS / "accuracy.toml").cells()}
    for name in ("copies", "individual", "individual-half"):
        assert rows[name].options == shared[name].options
        assert rows[name].width == shared[name].width
    assert rows["halved"].options == shared["firefly"].options


def test_firefly_of_the_accuracy_grid_is_the_preset_that_ships():
    for strategy in ("firefly", "individual"):
        (shipped,) = cells_of(Request("split-cifar100", (strategy,), (0,), validation=0.0))
        cells = read_grid(GRIDS / "accuracy.toml").cells()
        assert shipped in [found.cell for found in cells if found.strategy == strategy]


def test_individual_networks_are_trained_as_firefly_is():
    grid = read_grid(GRIDS / "accuracy.toml")
    assert grid.out is not None and grid.out.parts[0] == "runs"
    cells = grid.cells()
    assert {found.scenario for found in cells} == {"superclass-20", "random-20", "random-10"}
    for scenario, seed in {(found.scenario, found.cell.seed) for found in cells}:
        here = [f for f in cells if (f.scenario, f.cell.seed) == (scenario, seed)]
        firefly, copies, individual, half = (found.cell for found in here)
        assert copies == replace(firefly, options=copies.options)
        assert individual == replace(firefly, strategy="individual", options={})
        assert half == replace(individual, width=half.width)
        assert firefly.evaluate_on == "test" and firefly.validation == 0
        for cell in (firefly, copies):  # nothing is decided
            assert cell.options["grow_at"] == "" and "prune_tolerance" not in cell.options
        sizes = [
            sum(p.numel() for p in BACKBONES.get(cell.backbone)(5, width=cell.width).parameters())
            for cell in (firefly, half)
        ]
        assert sizes[1] / sizes[0] == pytest.approx(0.5, abs=0.01)


def test_the_class_incremental_grid_trains_a_single_head_where_there_is_one():
    cells = [found.cell for found in read_grid(GRIDS / "class_incremental_digits.toml").cells()]
    assert all(cell.class_incremental for cell in cells)
    for cell in cells:
        has_one = issubclass(STRATEGIES.options(cell.strategy) or object, HeadOptions)
        assert (cell.options.get("head") == "single") is has_one, cell.strategy
        assert cell.options.get("mem_size", "100") == "100"


def test_the_grid_of_the_literature_shares_network_and_recipe():
    cells = [found.cell for found in read_grid(GRIDS / "literature.toml").cells()]
    assert {cell.seed for cell in cells} == {0, 1, 2}
    assert {(cell.scenario, cell.split_into) for cell in cells} == {("split-cifar100", 10)}
    same = [replace(cell, strategy="naive", seed=0, options={}, width=1.0) for cell in cells]
    assert len({cell.digest() for cell in same}) == 1
    sizes = {
        cell.strategy: sum(
            p.numel() for p in BACKBONES.get(cell.backbone)(10, width=cell.width).parameters()
        )
        for cell in cells
    }
    assert sizes["individual"] * 10 == pytest.approx(sizes["ewc-online"], rel=0.05)
    assert sizes["firefly"] * 10 / 2 == pytest.approx(sizes["ewc-online"], rel=0.05)
    (shipped,) = cells_of(Request("split-cifar100", ("firefly",), (0,)))
    assert all(cell.options == shipped.options for cell in cells if cell.strategy == "firefly")


def test_every_grid_that_is_shipped_is_tested():
    assert {path.name for path in GRIDS.glob("*.toml")} == {
        "accuracy.toml",
        "ablations.toml",
        "class_incremental_digits.toml",
        "literature.toml",
        *(path.name for path in SHIPPED),
    }


def test_the_large_grid_has_both_protocols_and_three_seeds():
    cells = read_grid(SHIPPED[0]).cells()
    assert {(found.scenario, found.cell.scenario, found.cell.seed) for found in cells} == {
        (name, scenario, seed)
        for name, scenario in (
            ("superclass-20", "split-cifar100-superclass"),
            ("random-20", "split-cifar100"),
        )
        for seed in (0, 1, 2)
    }


def test_the_grid_of_the_docs_is_one(write: Write):
    page = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text(encoding="utf-8")
    text = page.partition("```toml\n")[2].partition("```")[0]
    cells = read_grid(write(text)).cells()
    assert len(cells) == 2 * 3 * 3
    rates = {f.cell.recipe["learning_rate"] for f in cells if f.strategy == "ewc"}
    assert 0.1 in rates
    assert {f.cell.options.get("grow_at") for f in cells if f.strategy == "uniform"} == {"0.2,0.4"}
