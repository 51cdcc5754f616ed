"""The examples of docs/scenarios.md run."""

import re
from pathlib import Path

import pytest

from firefly_cl.scenarios import SCENARIOS, ScenarioOptions

PAGE = Path(__file__).parents[2] / "docs" / "scenarios.md"


def test_examples_run(cifar100_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SCENARIOS, "_objects", dict(SCENARIOS._objects))
    use, batches, own = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {}
    exec(use.replace('Path("data")', f"Path({str(cifar100_folder)!r})"), names)
    assert len(names["benchmark"].streams["valid"]) == 5
    exec(batches, names)
    assert names["x"].shape == (45, 3, 32, 32)
    exec(own, names)
    scenario = SCENARIOS.get("noise")(ScenarioOptions())
    assert [len(task.train) for task in scenario.tasks] == [26, 26]


def test_the_table_names_every_scenario() -> None:
    for name in SCENARIOS.names():
        assert f"| `{name}` |" in PAGE.read_text()
