"""docs/extending.md: every file that it shows works from its place, found by name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from firefly_cl import baselines, growth, scenarios, zoo
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup
from firefly_cl.continual.recipe import Recipe
from firefly_cl.growth import CRITERIA
from firefly_cl.network import FireflyNet, extract, graph, trace
from firefly_cl.scenarios import SCENARIOS, Augmentation, ScenarioOptions
from firefly_cl.search_space import Range, space_of
from firefly_cl.zoo import BACKBONES

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
PLACES = {
    "firefly_cl/zoo/plain3.py": (zoo, BACKBONES, "plain3"),
    "scenarios/stripes.py": (scenarios, SCENARIOS, "stripes"),
    "baselines/anchor.py": (baselines, STRATEGIES, "anchor"),
    "firefly_cl/growth/thinnest.py": (growth, CRITERIA, "thinnest"),
}
QUICK = Recipe(epochs=5, batch_size=32, augmentation=Augmentation(0, False), precision="float32")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's files where their packages look, for the time of a test."""
    modules = set(sys.modules)
    for name, (package, registry, _) in PLACES.items():
        folder = tmp_path / Path(name).parent
        folder.mkdir(parents=True)
        (folder / Path(name).name).write_text(FILES[name])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.setattr(
            package.__spec__, "submodule_search_locations", list(package.__path__), raising=True
        )
        registry.__dict__.pop("_files", None)
    yield
    for _, registry, name in PLACES.values():  # what else was imported meanwhile stays
        registry._objects.pop(name, None)
        registry._options.pop(name, None)
        registry.__dict__.pop("_files", None)
    shown = {Path(path).stem for path in PLACES}
    for module in set(sys.modules) - modules:
        if module.rpartition(".")[2] in shown:
            del sys.modules[module]


def test_every_file_of_the_page_is_tested() -> None:
    assert set(FILES) == {*PLACES, "my_model.py"}
    assert PAGE.count("```python") == len(FILES)


def test_files_are_found_by_name_with_their_description(installed: None) -> None:
    for path, (_, registry, name) in PLACES.items():
        assert name in registry.names()
        assert f'"""{registry.describe(name)}"""' in FILES[path]


def test_all_of_them_together(installed: None) -> None:
    torch.set_num_threads(1)
    scenario = SCENARIOS.get("stripes")(ScenarioOptions())
    assert [task.classes for task in scenario.tasks] == [
        ("upright", "falling"),
        ("level", "rising"),
    ]
    for strategy, options in (
        ("firefly", {"criterion": "thinnest", "growth": "1"}),
        ("anchor", {"strength": "0.3"}),
    ):
        setup = Setup(scenario, backbone="plain3", width=0.25, recipe=QUICK, options=options)
        learner = STRATEGIES.get(strategy)(setup)
        for experience in scenario.benchmark().train_stream:
            learner.train(experience)
        for task in scenario.tasks:
            right = learner.logits(task.index, task.test.images).argmax(1) == task.test.labels
            assert right.float().mean() > 0.75  # chance is 0.5
        if strategy == "firefly":
            assert {kind for e in learner.growth_events for kind in e["kinds"]} == {"new"}
            own = [widths[1] for widths in learner.widths().values()]
            assert max(own) - min(own) <= 1  # the seeds are not as even
        else:
            assert learner.bytes() > 4 * learner.floats()
            assert space_of(STRATEGIES.options(strategy)) == {"strength": Range(0.01, 10.0, True)}


@mock.patch.dict(graph.MAPS)
@mock.patch.dict(trace.CALL_RULES)
def test_a_new_operation() -> None:
    exec(FILES["my_model.py"], {})

    class Soft(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(nn.functional.softsign(self.first(x)))

    model, x = Soft().eval(), torch.randn(5, 4)
    net = FireflyNet.from_module(model, x).eval()
    assert torch.allclose(net(x), model(x), atol=1e-6)
    net.freeze()
    net.begin_task(3, 2)
    assert net(x).shape == (5, 3)
    assert torch.allclose(extract(net, 0)(x), model(x), atol=1e-6)
