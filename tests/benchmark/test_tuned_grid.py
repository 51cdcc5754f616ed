"""The grid that a search writes: TOML that says what the old one said, and what was chosen."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from firefly_cl.benchmark.grid import read_grid
from firefly_cl.benchmark.search import Search
from firefly_cl.benchmark.tables import read_tables
from firefly_cl.benchmark.trials import Trial
from firefly_cl.benchmark.tuned_grid import moved, tuned_grid
from firefly_cl.search_space import Choice, Range, Value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.toml"))

GRID = """
learning-rate = 0.3
seeds = [0, 2]
recipe = { mixup = 0.2, augmentation = { cutout = 2 } }
[scenarios.split-digits]
tasks = 3
[scenarios.split-digits.strategies.ewc]
learning_rate = 0.4
options = { ewc-lambda = 7 }
[scenarios."two words"]
scenario = "split-digits"
strategies.packnet.recipe.weight_decay = 0.1
[strategies]
ewc = { options = { ewc-lambda = 5, norm = "shared" } }
packnet = { options = { post-prune-share = 0.2 } }
"""

DEFAULTS: dict[str, Value] = {"recipe.learning_rate": 0.4, "recipe.weight_decay": 5e-4}


def search(scenario: str, strategy: str, own: dict[str, Value]) -> Search:
    space = {name: Range(1e-9, 1e9, log=True) for name in {**DEFAULTS, **own}}
    space = {n: Choice(("a", "b")) if isinstance(own.get(n), str) else d for n, d in space.items()}  # type: ignore[misc]
    return Search(scenario, strategy, (), space, {**DEFAULTS, **own}, Path("out"))


def trials(*found: tuple[dict[str, Value], float | None]) -> list[Trial]:
    return [
        Trial(n, {**DEFAULTS, **settings}, score, [score], None, 1.0, {}, {}, [], {})
        for n, (settings, score) in enumerate(found)
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_grid_is_written_as_it_was_read(path: Path) -> None:
    told = read_tables(path, "a grid's")
    text = tuned_grid(told, "elsewhere", [], f"line\n{path}\n\nend")
    assert tomllib.loads(text) == {**told, "out": "elsewhere"}
    assert text.splitlines()[:4] == ["# line", f"# {path}", "#", "# end"]


@pytest.mark.parametrize(
    "told",
    [
        {"a.b": {"c d": 1, "é": 'x"\\\n\x01\x7f'}, "": {"empty": {}}},
        {"seeds": [], "recipe": {"a": {"b": [1, 2.5, True, "x"]}}, "deep": {"er": {"est": 1e-05}}},
        {"strategies": {"options": {"options": {"x": 1e300}}, "recipe": {}}, "f": 1000.0},
    ],
)
def test_awkward_names_and_values(told: dict[str, Any]) -> None:
    assert tomllib.loads(tuned_grid(told, "o", [], "")) == {**told, "out": "o"}


def test_a_preset_file_beside_the_grid_is_found_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('backbone = "mlp"\n')
    grid, out = tmp_path / "grid.toml", tmp_path / "out" / "deep"
    out.mkdir(parents=True)
    grid.write_text(
        'preset = "digits"\n[scenarios.split-digits]\npreset = "mine.toml"\n[strategies.naive]\n'
    )
    told = moved(read_tables(grid, "a grid's"), tmp_path, out)
    assert told["preset"] == "digits"
    (out / "tuned.toml").write_text(tuned_grid(told, "o", [], "head"))
    presets = [read_grid(path).entries[0].request.preset for path in (grid, out / "tuned.toml")]
    assert presets[0] is not None and presets[0] == presets[1]


def test_what_was_chosen_goes_over_what_the_grid_says_however_it_is_spelt(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    own: dict[str, Value] = {"options.ewc_lambda": 7.0, "options.norm": "shared"}
    better: dict[str, Value] = {
        "recipe.learning_rate": 0.01,
        "recipe.weight_decay": 1e-05,
        "options.ewc_lambda": 60.0,
        "options.norm": "shared",
    }
    share: dict[str, Value] = {"options.post_prune_share": 0.2}
    results = [
        (search("split-digits", "ewc", own), trials((own, 0.5), ({}, None), (better, 0.75))),
        (
            search("two words", "packnet", share),
            trials((share, None), ({"options.post_prune_share": 0.6}, 0.5)),
        ),
    ]
    text = tuned_grid(read_tables(path, "a grid's"), "o", results, "head")
    path.write_text(text)
    found = {(c.scenario, c.strategy, c.cell.seed): c.cell for c in read_grid(path).cells()}
    assert len(found) == 8
    ewc = found["split-digits", "ewc", 2]
    assert ewc.recipe["learning_rate"] == 0.01 and ewc.recipe["weight_decay"] == 1e-05
    assert ewc.recipe["mixup"] == 0.2 and ewc.recipe["augmentation"]["cutout"] == 2
    assert ewc.options == {"ewc_lambda": "60.0", "norm": "shared"} and ewc.tasks == 3
    packnet = found["two words", "packnet", 0]
    assert packnet.options == {"post_prune_share": "0.6"}
    assert packnet.recipe["weight_decay"] == 0.1  # the trial had the grid's own
    # what was not searched is as before
    assert found["two words", "ewc", 0].options == {"ewc_lambda": "5", "norm": "shared"}
    assert found["split-digits", "packnet", 0].recipe["learning_rate"] == 0.3
    comments = re.findall(r"# (.*)\n# (.*)\n\[(.*)\]", text)
    assert comments == [
        (
            "Trial 2 of 3 trials, 1 failed: 75.0 %; the grid's own settings: 50.0 %.",
            "learning_rate 0.01, weight_decay 1e-05, ewc_lambda 60, norm shared",
            "scenarios.split-digits.strategies.ewc",
        ),
        (
            "Trial 1 of 2 trials, 1 failed: 50.0 %; the grid's own settings: failed.",
            "learning_rate 0.4, weight_decay 0.0005, post_prune_share 0.6",
            'scenarios."two words".strategies.packnet',
        ),
    ]
