"""Presets in TOML files: what they set, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from firefly_cl import cli
from firefly_cl.benchmark.grid import read_grid
from firefly_cl.benchmark.plan import Request, cells_of
from firefly_cl.benchmark.presets import FOLDER, NAMED, named, read_preset
from firefly_cl.errors import FireflyError

MINE = """
description = "Mine."
source = '''
Chosen on
validation images.
'''
backbone = "mlp"
width = 1
epochs = 2
learning-rate = 0.2
recipe = { mixup = 0.3, augmentation = { cutout = 2, flip = false } }
options = { head_scale = 1.5 }

[strategies.firefly]
constant_width = 7
batch-size = 8
recipe = { augmentation = { cutout = 3 } }
options = { grow-at = [0.25, 0.5], restart = true, cost = "flops" }
"""


def test_files_set_what_they_say(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(MINE)
    preset = named("mine.toml", tmp_path)
    assert (preset.name, preset.description) == ("mine", "Mine.")
    assert preset.source == "Chosen on validation images."
    assert (preset.backbone, preset.width, preset.constant_width) == ("mlp", 1.0, None)
    naive, firefly = preset.of("naive"), preset.of("firefly")
    assert naive.recipe == {
        "epochs": 2,
        "learning_rate": 0.2,
        "mixup": 0.3,
        "augmentation": {"cutout": 2, "flip": False},
    }
    assert firefly.recipe["augmentation"] == {"cutout": 3, "flip": False}
    assert (firefly.recipe["batch_size"], firefly.recipe["epochs"]) == (8, 2)
    assert firefly.constant_width == 7
    assert firefly.options == {
        "head_scale": "1.5",
        "grow_at": "0.25,0.5",
        "restart": "true",
        "cost": "flops",
    }


def test_grids_and_the_command_line_take_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "mine.toml").write_text('backbone = "mlp"\nepochs = 3\n')
    grid = tmp_path / "grid.toml"
    grid.write_text('preset = "mine.toml"\n[scenarios.split-digits]\n[strategies.naive]\n')
    (found,) = read_grid(grid).cells()
    asked = Request("split-digits", ("naive",), (0,), preset=named("mine.toml", tmp_path))
    assert found.cell == cells_of(asked)[0]
    assert (found.cell.backbone, found.cell.recipe["epochs"]) == ("mlp", 3)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("epoch = 3")
    assert cli.execute(cli._parse(["run", "split-digits", "--preset", "mine.toml"])) == 2
    assert capsys.readouterr().err == (
        "error: mine.toml: unknown key 'epoch': did you mean 'epochs'?\n"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epochs = 2.5", "epochs is 2.5: give a whole number"),
        ("[strategies.firefli]", "unknown strategy 'firefli': did you mean 'firefly'?"),
        ("[strategies.ewc]\nlambda = 2", "unknown key 'lambda' in [strategies.ewc]"),
        ("strategies.ewc = 2", "strategies.ewc is 2: make it a table, [strategies.ewc]"),
        ('backbone = "resnet"', "unknown backbone 'resnet'"),
        ("options = { a = { b = 1 } }", "options has a table 'a': give plain values"),
        ('default = { run = ["split-digits"] }', "only presets that ship have a default"),
        ("epochs = ", "is not TOML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, says: str):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(FireflyError) as caught:
        named("bad.toml", tmp_path)
    message = str(caught.value)
    assert says in message and "bad.toml" in message and "\n" not in message


def test_names_and_files_that_are_not_there(tmp_path: Path):
    with pytest.raises(FireflyError, match=r"cannot read .*none.toml .*name a preset's TOML file"):
        named("none.toml", tmp_path)
    with pytest.raises(FireflyError, match="'cifer': did you mean 'cifar'"):
        named("cifer")


def test_all_that_ship_are_found():
    assert NAMED == {path.stem: read_preset(path) for path in FOLDER.glob("*.toml")}
    assert {"cifar", "digits", "plain", "thin-mlp", "thin-vgg19"} <= set(NAMED)
