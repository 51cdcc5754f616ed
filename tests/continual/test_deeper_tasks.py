"""Deeper growth inside tasks: recorded, trained by the strategy's optimizer, within its budget."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from growing_streams import PLAN, RECIPE, SMALL_SEARCH, answers, drawn, growing, stream_of
from torch import Tensor

from firefly_cl.network import floats

TASKS = [((0, 1), 24), ((2, 3), 24)]
DEEPER = {**SMALL_SEARCH, "news": 0, "copies": 0, "splits": False, "depths": 3}
FOUR_EPOCHS = dataclasses.replace(RECIPE, epochs=4)


class Watch(SupervisedPlugin):
    """Notes what the optimizer holds and what inserted layers weigh, epoch by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[dict[str, Tensor]] = []

    def after_training_epoch(self, strategy: Any, **kwargs: object) -> None:
        net, optimizer = strategy.model.net, strategy.optimizer
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert held == [id(p) for p in net.trainable()], "all of the task's, in the graph's order"
        heads, _ = strategy.model.heads()
        (group,) = (group for group in optimizer.param_groups if group.get("heads"))
        assert {id(p) for p in group["params"]} == {id(p) for p in heads}
        own = dict(net.task_parameters(net.current))
        inserted = {k: p.detach().clone() for k, p in own.items() if "_deeper" in k and p.numel()}
        self.weights.append(inserted)


@pytest.mark.parametrize("name", ["mlp", "resnet9"])
def test_a_stream_grows_deeper_and_forgets_nothing(name: str) -> None:
    watch = Watch()
    plan = dataclasses.replace(PLAN, grow_at=(0.25, 0.5), growth=0.5, patience=-10.0)
    plan = dataclasses.replace(plan, settings=DEEPER)
    start = floats(growing(name).net)
    strategy = growing(name, plan=plan, recipe=FOUR_EPOCHS, budget=start + 30000, plugins=[watch])
    images, _ = drawn(range(4), 2, seed=3)
    logits: list[Tensor] = []
    for number, experience in enumerate(stream_of(TASKS).train_stream):
        watch.weights.clear()
        strategy.train(experience)
        assert floats(strategy.net) <= start + 30000
        for task, before in enumerate(logits):
            assert torch.equal(answers(strategy.model, task, images), before)
        logits.append(answers(strategy.model, number, images))
        last, grown = watch.weights[-1], watch.weights[-2]
        assert last and last.keys() == grown.keys()
        assert not any(torch.equal(last[key], grown[key]) for key in last if key.endswith("own"))
    events = strategy.firefly.events
    assert {event["task"] for event in events} == {0, 1}
    nodes = {node.name for node in strategy.net.nodes}
    for event in events:
        kinds, spaces = event["kinds"], event["spaces"]
        assert isinstance(kinds, dict) and isinstance(spaces, dict)
        assert set(kinds) == {"deeper"} and sum(spaces.values()) == kinds["deeper"] > 0
        assert set(spaces) <= nodes
