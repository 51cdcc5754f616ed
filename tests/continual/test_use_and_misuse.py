"""What people do with a strategy around training: save and load it, and misuse it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.training.plugins import LwFPlugin
from avalanche.training.supervised import Naive
from growing_streams import PLAN, RECIPE, backbone, growing, stream_of
from torch import nn

from firefly_cl import FireflyModel, FireflyPlugin, FireflyStrategy, Plan
from firefly_cl.errors import ConfigurationError, DataError, FileError
from firefly_cl.network import extract, save_net
from firefly_cl.scenarios import SCENARIOS, ScenarioOptions

STREAM = [((0, 1), 10), ((0, 1), 10), ((0, 1), 10)]
QUICK = dataclasses.replace(PLAN, grow_at=())


def test_a_saved_model_answers_by_its_labels_and_learns_on(tmp_path: Path) -> None:
    benchmark = stream_of(STREAM)
    strategy = growing(plan=QUICK)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    strategy.model.save(str(tmp_path / "model.safetensors"))
    loaded = FireflyModel.load(str(tmp_path / "model.safetensors"), QUICK)
    assert loaded.tasks == strategy.model.tasks == {0: 0, 1: 1}
    x = torch.randn(5, 1, 8, 8)
    strategy.model.eval()
    before = [strategy.model(x, task) for task in (0, 1)]
    assert all(torch.equal(loaded(x, task), before[task]) for task in (0, 1))
    again = FireflyStrategy(model=loaded, recipe=RECIPE, evaluator=None)
    with pytest.raises(ConfigurationError, match="label 1, which was learnt before"):
        again.train(benchmark.train_stream[1], eval_streams=[])
    again.train(benchmark.train_stream[2], eval_streams=[])
    again.model.eval()
    assert all(torch.equal(again.model(x, task), before[task]) for task in (0, 1))
    save_net(strategy.net, tmp_path / "net.safetensors")
    with pytest.raises(FileError, match="has no task labels: read it with load_net"):
        FireflyModel.load(tmp_path / "net.safetensors")


def test_an_extracted_task_is_frozen_as_it_is_in_the_network() -> None:
    benchmark = stream_of(STREAM)
    strategy = growing("mlp-bn", plan=QUICK)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    module, x = extract(strategy.net, 0), torch.randn(5, 1, 8, 8)
    assert strategy.net.training and not module.training
    torch.testing.assert_close(module(x), strategy.net(x, 0))
    assert module(x[:1]).shape == (1, 2)
    strategy.net.begin_task(2, 2)
    assert extract(strategy.net, 1).training


def test_model_and_plugin_have_one_plan() -> None:
    model = FireflyModel.wrap(backbone(), torch.zeros(2, 1, 8, 8), QUICK)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    strategy = Naive(
        model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), train_epochs=2,
        plugins=[FireflyPlugin()],
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"a plan with another seed, .*grow_at.*same plan"):
        strategy.train(stream_of(STREAM).train_stream[0], eval_streams=[])


def test_an_optimizer_with_several_groups_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    groups = [{"params": net[1].parameters()}, {"params": net[3].parameters(), "lr": 0.01}]
    with pytest.raises(ConfigurationError, match=r"2 groups .*: give it one group"):
        FireflyStrategy(
            model=net, example_input=torch.zeros(2, 1, 8, 8), optimizer=torch.optim.SGD(groups, 0.1)
        )


def test_raw_pixels_without_a_recipe_are_told() -> None:
    digits = SCENARIOS.get("split-digits")(ScenarioOptions(first_tasks=2)).benchmark()
    with pytest.raises(DataError, match=r"uint8, .*benchmark\(normalised=True\)"):
        growing(recipe=None).train(digits.train_stream[0], eval_streams=[])


def test_growth_within_no_epoch_is_told() -> None:
    strategy = growing(plan=Plan(grow_at=(0.2, 0.4)), recipe=dataclasses.replace(RECIPE, epochs=1))
    with pytest.warns(UserWarning, match=r"grow_at=\(0.2, 0.4\) is within no epoch of 1: it never"):
        strategy.train(stream_of(STREAM).train_stream[0], eval_streams=[])
    assert strategy.firefly.events == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"grow_at": 0.2}, "give a tuple of shares"), ({"seed": "a"}, "seed is 'a': give a number")],
)
def test_plans_of_the_wrong_kind(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Plan(**changes)


def test_a_plugin_that_distils_all_heads_works() -> None:
    benchmark = stream_of(STREAM)
    strategy = growing(plan=QUICK, recipe=None, train_epochs=1, plugins=[LwFPlugin()])
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    assert set(strategy.model(torch.zeros(3, 1, 8, 8))) == {0, 1}
