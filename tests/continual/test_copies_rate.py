"""Tasks that begin with copies may learn at a rate of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from growing_streams import PLAN, RECIPE, growing, stream_of

from firefly_cl.continual.plan import Plan
from firefly_cl.continual.strategy import FireflyStrategy
from firefly_cl.errors import ConfigurationError

COPIES = replace(PLAN, start="copies", shared=0.0, grow_at=())
TASKS = [((0, 1), 16), ((2, 3), 16), ((4, 5), 16)]


class Rates(SupervisedPlugin):
    """The rates of every group at every step, by task."""

    def __init__(self) -> None:
        super().__init__()
        self.by_task: list[list[list[float]]] = []

    def before_training_exp(self, strategy: Any, **kwargs: object) -> None:
        self.by_task.append([])

    def before_update(self, strategy: Any, **kwargs: object) -> None:
        rates = [group["lr"] for group in strategy.optimizer.param_groups if group["params"]]
        self.by_task[-1].append(rates)


def learned(plan: Plan) -> tuple[FireflyStrategy, torch.Tensor]:
    """A strategy after all tasks, and the rates it learned at: (task, step, group)."""
    rates = Rates()
    strategy = growing("resnet9", plan=plan, recipe=replace(RECIPE, head_rate=3.0), plugins=[rates])
    for experience in stream_of(TASKS).train_stream:
        strategy.train(experience, eval_streams=[])
    return strategy, torch.tensor(rates.by_task)


def test_the_first_task_learns_at_the_full_rate_and_copies_at_theirs() -> None:
    plain, full = learned(COPIES)
    slow, rates = learned(replace(COPIES, copies_rate=0.25))
    assert rates.shape[-1] == 2, "the head learns at a rate of its own"
    assert torch.equal(rates[0], full[0])
    torch.testing.assert_close(rates[1:], 0.25 * full[1:])

    def first(strategy: FireflyStrategy) -> torch.Tensor:
        images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        strategy.model.eval()
        return strategy.model(images, 0).detach()

    assert torch.equal(first(plain), first(slow))


@pytest.mark.parametrize("rate", [0.0, -1.0, 11.0, float("nan")])
def test_a_rate_that_cannot_work(rate: float) -> None:
    with pytest.raises(ConfigurationError, match="copies_rate is"):
        replace(COPIES, copies_rate=rate)


def test_networks_that_are_no_copies_learn_at_the_full_rate() -> None:
    fresh = replace(COPIES, start="random")
    (_, full), (_, rates) = learned(fresh), learned(replace(fresh, copies_rate=0.25))
    assert torch.equal(rates, full)
