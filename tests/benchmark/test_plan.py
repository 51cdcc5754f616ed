"""The plan: presets, what a user asks over them, and what is refused before anything starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from firefly_cl import cli
from firefly_cl.benchmark.configuration import (
    differences,
    digest,
    merged,
    parse_settings,
    recipe_as_json,
    recipe_from,
)
from firefly_cl.benchmark.plan import (
    Request,
    cells_of,
    check,
    check_data_dir,
    check_device,
    check_options,
    check_settings,
    parse_names,
    parse_seeds,
)
from firefly_cl.benchmark.presets import NAMED, PRESETS, Preset, preset_of
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.plan import plan_of
from firefly_cl.continual.recipe import Recipe, defaults
from firefly_cl.errors import ConfigurationError, UnknownName
from firefly_cl.growth.criterion import criterion_of
from firefly_cl.growth.gradmax import GradMax
from firefly_cl.network import FireflyNet, floats
from firefly_cl.scenarios import SCENARIOS
from firefly_cl.zoo import BACKBONES

REQUEST = Request("split-digits", ("naive", "ewc"), (0, 1))


def test_cells_go_seed_by_seed():
    found = [(cell.seed, cell.strategy) for cell in cells_of(REQUEST)]
    assert found == [(0, "naive"), (0, "ewc"), (1, "naive"), (1, "ewc")]


def test_a_cell_holds_the_whole_recipe():
    recipe = cells_of(REQUEST)[0].recipe
    assert recipe["epochs"] == PRESETS["split-digits"].recipe["epochs"]
    assert recipe["momentum"] == 0.9
    assert recipe["augmentation"]["flip"] is False


def test_what_is_asked_goes_over_the_preset():
    asked = replace(
        REQUEST,
        epochs=3,
        batch_size=16,
        learning_rate=0.5,
        backbone="resnet9",
        width=0.25,
        constant_width=7,
        budget=1000,
        recipe=("mixup=0.2", "augmentation.cutout=2", "schedule=cosine"),
        options=("memory=10", "ewc.strength=5"),
    )
    naive, ewc = cells_of(asked)[:2]
    assert (naive.recipe["epochs"], naive.recipe["batch_size"]) == (3, 16)
    assert (naive.recipe["learning_rate"], naive.recipe["mixup"]) == (0.5, 0.2)
    assert naive.recipe["schedule"] == "cosine"
    assert naive.recipe["augmentation"]["cutout"] == 2
    assert naive.recipe["augmentation"]["crop_padding"] == 1  # the preset's, kept
    assert (naive.backbone, naive.width, naive.constant_width, naive.budget) == (
        "resnet9",
        0.25,
        7,
        1000,
    )
    assert dict(naive.options) == {"memory": "10"}
    assert dict(ewc.options) == {"memory": "10", "strength": "5"}


def test_two_spellings_are_one_setting():
    asked = replace(
        REQUEST,
        strategies=("firefly",),
        preset=NAMED["cifar"],
        options=("grow_at=0.1", "firefly.grow-at=", "gate-epochs=3"),
    )
    options = cells_of(asked)[0].options
    assert (options["grow_at"], options["gate_epochs"]) == ("", "3")
    assert not any("-" in name for name in options)


def test_a_named_preset_stands_in_for_the_scenarios():
    command = cli._parse(["run", "--preset", "cifar", "--strategy", "firefly,ewc", "--epochs", "3"])
    ((_, asked, _),) = cli._requests(command)
    firefly, ewc = cells_of(asked)
    expected = NAMED["cifar"].of("firefly")
    assert asked.scenario == "split-digits"
    assert (firefly.backbone, firefly.width, firefly.budget) == ("resnet9", 0.225, expected.budget)
    assert firefly.options == expected.options and ewc.options == {} and ewc.budget is None
    assert firefly.recipe == ewc.recipe
    assert (ewc.recipe["epochs"], ewc.recipe["cutmix"]) == (3, 0.5)  # what is asked goes over it
    assert cells_of(replace(asked, preset=None))[0].backbone == "mlp"


def test_a_width_replaces_the_constant_one_of_a_preset():
    asked = replace(REQUEST, preset=NAMED["thin-mlp"])
    assert cells_of(asked)[0].constant_width == 4
    wider = cells_of(replace(asked, width=0.5))[0]
    assert (wider.width, wider.constant_width) == (0.5, None)
    assert cells_of(replace(asked, width=0.5, constant_width=3))[0].constant_width == 3


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("strategy", STRATEGIES.names())
def test_every_named_preset_is_built(name: str, strategy: str):
    preset = NAMED[name]
    assert preset.name == name and preset.description.endswith(".")
    assert preset.source.endswith(".")
    (cell,) = cells_of(Request("split-digits", (strategy,), (0,), preset=preset))
    assert recipe_from(cell.recipe).epochs == preset.recipe.get("epochs", Recipe().epochs)
    if strategy == "firefly":
        plan = plan_of(cell.options)
        criterion_of(plan.criterion, plan.settings)
        model = BACKBONES.get(cell.backbone)(
            n_classes=2,
            in_channels=3,
            image_size=32,
            width=cell.width,
            constant_width=cell.constant_width,
            generator=torch.Generator(),
        )
        net = FireflyNet.from_module(model.eval(), torch.zeros(2, 3, 32, 32))
        assert min(plan.seed_widths(net).values()) >= 1
        assert cell.budget is None or floats(net) < cell.budget


def test_the_device_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    def devices() -> list[str]:
        asked = (REQUEST, replace(REQUEST, device="cpu"), replace(REQUEST, device="cuda"))
        return [cells_of(request)[0].device for request in asked]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices() == ["cpu", "cpu", "cuda"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices() == ["cuda", "cpu", "cuda"]


def test_a_strategy_changes_its_preset():
    preset = Preset(
        width=1.0,
        recipe={"epochs": 5, "mixup": 0.1},
        strategies={"ewc": {"width": 2.0, "recipe": {"mixup": 0.0}, "options": {"strength": "9"}}},
    )
    assert preset.of("naive").width == 1.0
    ewc = preset.of("ewc")
    assert ewc.width == 2.0
    assert ewc.recipe == {"epochs": 5, "mixup": 0.0}
    assert ewc.options == {"strength": "9"}


@pytest.mark.parametrize("scenario", SCENARIOS.names())
def test_every_scenario_has_a_preset_that_works(scenario: str):
    assert scenario in PRESETS
    for strategy in STRATEGIES.names():
        preset = preset_of(scenario).of(strategy)
        assert preset.backbone in BACKBONES.names()
        cells_of(Request(scenario, (strategy,), (0,)))  # its recipe is valid


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scenario": "split-digit"}, "did you mean 'split-digits'"),
        ({"strategies": ("nave",)}, "did you mean 'naive'"),
        ({"backbone": "resnet-9"}, "did you mean 'resnet9'"),
        ({"tasks": 0}, "--tasks is 0"),
        ({"image_size": 0}, "--image-size is 0"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"batch_size": 1}, "--batch-size is 1"),
        ({"width": 0.0}, "--width is 0.0"),
        ({"width": 0.5, "constant_width": 8}, "are two widths: give one of them"),
        ({"width": float("nan")}, "--width is nan"),
        ({"validation": 1.0}, "--validation is 1.0"),
        ({"budget": -1}, "--budget is -1"),
        ({"recipe": ("mixup",)}, "--recipe name=value"),
        ({"options": ("memory",)}, "--option name=value"),
        ({"options": ("replay.memory=3",)}, "'replay', which is not run"),
    ],
)
def test_bad_requests_are_refused(changes: dict[str, object], says: str):
    with pytest.raises(ConfigurationError) as caught:
        check(replace(REQUEST, **changes))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("mixpu=0.2", "no setting 'mixpu'"),
        ("augmentation.cut=2", "the augmentation has no setting 'cut'"),
        ("schedule=stairs", "schedule is 'stairs'"),
        ("learning_rate=high", "learning_rate"),
        ("augmentation=3", "augmentation of the recipe is 3"),
        ("epochs=2.5", "epochs of the recipe is 2.5"),
        ("nesterov=1", "nesterov of the recipe is 1"),
    ],
)
def test_bad_recipes_are_refused(setting: str, says: str):
    with pytest.raises(ConfigurationError, match=says):
        cells_of(replace(REQUEST, recipe=(setting,)))


def test_names_and_seeds():
    assert parse_names(" a, b,,a", "--strategy") == ("a", "b")
    assert parse_seeds("0,2, 1,2") == (0, 2, 1)
    with pytest.raises(ConfigurationError, match="--strategy is empty"):
        parse_names(" ,", "--strategy")
    for bad in ("-1", "1.5", "x", "²"):
        with pytest.raises(ConfigurationError, match="whole numbers"):
            parse_seeds(bad)


def test_settings_are_read_by_name():
    assert parse_settings(["a=1", "b.c=true", "b.d=x=y"], "--recipe") == {
        "a": 1,
        "b": {"c": True, "d": "x=y"},
    }
    with pytest.raises(ConfigurationError, match="both"):
        parse_settings(["a=1", "a.b=2"], "--recipe")


def test_merging_and_differences():
    base = {"a": 1, "b": {"c": 2, "d": 3}}
    other = merged(base, {"b": {"c": 4}, "e": None})
    assert other == {"a": 1, "b": {"c": 4, "d": 3}, "e": None}
    assert base["b"] == {"c": 2, "d": 3}
    assert differences(base, merged(base, {"b": {"c": 4}})) == {"b.c": (2, 4)}
    assert differences(base, {**base, "n": 5}) == {"n": (None, 5)}


def test_what_an_older_record_does_not_tell_has_its_default():
    assert defaults() == recipe_as_json(Recipe())
    (cell,) = cells_of(Request(scenario="split-digits", strategies=("naive",), seeds=(0,)))
    new = cell.as_json()
    old = json.loads(json.dumps(new))
    del old["recipe"]["mirrored"], old["recipe"]["augmentation"]["cutout"]
    assert (
        differences(old, new) == differences({"configuration": old}, {"configuration": new}) == {}
    )
    assert digest(old) == digest(new) == cell.digest()
    other = merged(new, {"recipe": {"mirrored": True, "augmentation": {"cutout": 4}}})
    assert differences(old, other) == {
        "recipe.augmentation.cutout": (0, 4),
        "recipe.mirrored": (False, True),
    }
    assert "mirrored" not in old["recipe"]  # nor is what is compared changed


def test_paths_and_devices_are_checked(tmp_path: Path):
    check_data_dir(None)
    check_data_dir(tmp_path)
    with pytest.raises(ConfigurationError, match="--data-dir"):
        check_data_dir(tmp_path / "none")
    check_device("cpu")
    with pytest.raises(ConfigurationError, match="--device warp"):
        check_device("warp")
    with pytest.raises(UnknownName):
        check(replace(REQUEST, backbone=""))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("epochs=2.5", "epochs of the recipe is 2.5: give a whole number"),
        ("mixup=much", "mixup of the recipe is 'much': give a number"),
        ("nesterov=maybe", "nesterov of the recipe is 'maybe': give true or false"),
        ("channels_last=3", "channels_last of the recipe is 3: give true or false"),
        ("schedule=3", "schedule of the recipe is 3: give text"),
        (
            "augmentation=3",
            "augmentation of the recipe is 3: give a table of augmentation settings",
        ),
        ("augmentation.flip=3", "flip of the augmentation is 3: give true or false"),
    ],
)
def test_a_recipe_setting_of_another_kind_is_told_in_words(setting: str, says: str):
    with pytest.raises(ConfigurationError) as caught:
        cells_of(replace(REQUEST, recipe=(setting,)))
    assert str(caught.value) == says


def test_a_recipe_setting_says_no_as_an_option_does():
    cell = cells_of(replace(REQUEST, recipe=("nesterov=no", "augmentation.flip=Yes")))[0]
    assert cell.recipe["nesterov"] is False and cell.recipe["augmentation"]["flip"] is True


def test_settings_of_a_criterion_are_options_of_what_grows():
    asked = replace(
        REQUEST,
        strategies=("firefly", "naive"),
        options=("firefly.criterion=gradmax",),
        settings=("steps=3", "rate=0.5", "gradmax.rate=0.25"),
    )
    check(asked)
    check_settings(cells_of(asked))
    firefly, naive = cells_of(asked)[:2]
    preset = preset_of("split-digits").of("firefly").options
    assert firefly.options == {
        **preset,
        "criterion": "gradmax",
        "settings.steps": "3",
        "settings.rate": "0.25",
    }
    assert naive.options == {}
    plan = plan_of(firefly.options)
    assert (plan.criterion, plan.settings) == ("gradmax", {"steps": "3", "rate": "0.25"})
    assert criterion_of(plan.criterion, plan.settings) == GradMax(steps=3, rate=0.25)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("raech=0.1", "unknown firefly setting 'raech': did you mean 'reach'?"),
        ("quokka=1", "unknown firefly setting 'quokka': choose from copies, depths, halvings"),
        ("halvings=2.5", "firefly setting halvings is '2.5'; it must be a whole number"),
        ("reach=far", "firefly setting reach is 'far'; it must be a number"),
        ("reach=inf", "firefly setting reach is 'inf'; it must be a number"),
        ("reach=-1", "must be above 0"),
        ("splits=maybe", "firefly setting splits is 'maybe'; it must be true or false"),
        ("gradmax.rate=1", "--setting gradmax.rate is for 'gradmax', which is not run"),
    ],
)
def test_bad_settings_of_a_criterion_are_refused(setting: str, says: str):
    with pytest.raises(ConfigurationError) as caught:
        check_settings(cells_of(replace(REQUEST, strategies=("firefly",), settings=(setting,))))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_settings_need_something_that_grows():
    with pytest.raises(ConfigurationError, match="none of naive, ewc has one: run firefly too"):
        check(replace(REQUEST, settings=("reach=0.1",)))
    with pytest.raises(ConfigurationError, match="is not name=value"):
        check(replace(REQUEST, strategies=("firefly",), settings=("reach",)))


def test_a_budget_is_for_strategies_that_grow_with_the_tasks():
    for strategies in (("firefly", "ewc"), ("pnn",)):
        check_options(Request("split-digits", strategies, (0,), budget=5000))
    with pytest.raises(ConfigurationError, match="firefly and pnn, and naive, ewc cannot keep"):
        check_options(Request("split-digits", ("naive", "ewc"), (0,), budget=5000))
