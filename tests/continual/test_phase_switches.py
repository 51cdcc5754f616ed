"""Every phase of a task has one option on the command line that switches it off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from growing_streams import RECIPE, growing, stream_of

from firefly_cl import cli
from firefly_cl.benchmark.plan import cells_of
from firefly_cl.continual.plan import Plan, plan_of
from firefly_cl.continual.strategy import FireflyStrategy
from firefly_cl.network.layers import GrowableLayer

STREAM = [((0, 1), 24), ((0, 1, 2), 24)]
ALL = (
    *("start=copies", "shared=0.5", "seed=1", "growth=1", "patience=-10", "grow-at=0.4"),
    *("select-at=0.2", "select-lam=0.01", "prune-at=0.8", "prune-keep=", "lam=0.01"),
    "gate-epochs=2",
)
TOLD = {"grow": "predicted_decrease", "select": "dropped", "prune": "removed"}
"""What the events of each phase, and of no other, tell."""


def plan_with(*options: str) -> Plan:
    """The plan of `firefly-cl run --option ...`: all phases, changed by further options."""
    given = [word for option in (*ALL, *options) for word in ("--option", f"firefly.{option}")]
    arguments = ["run", "--preset", "cifar", "--strategy", "firefly", *given]
    ((_, request, _),) = cli._requests(cli._parse(arguments))  # type: ignore[arg-type]
    (cell,) = cells_of(request)
    return plan_of(cell.options)


def phases_of(plan: Plan) -> set[str]:
    """The phases that have left an event after two tasks."""
    strategy = growing("mlp-bn", plan=plan, recipe=replace(RECIPE, epochs=5))
    for experience in stream_of(STREAM).train_stream:
        strategy.train(experience, eval_streams=[])
    events = strategy.firefly.events
    return {phase for phase, key in TOLD.items() if any(key in event for event in events)}


def begun(plan: Plan) -> FireflyStrategy:
    """The second task has begun and has not been trained."""
    strategy = growing("mlp-bn", plan=plan)
    strategy.model.train()
    for experience in stream_of(STREAM).train_stream:
        strategy.model.adaptation(experience)
    return strategy


def begins_with_copies(strategy: FireflyStrategy) -> bool:
    """Whether the second task's rows of the last space, which is private, are the first's."""
    net = strategy.net
    layer = net.layers[net.producers(net.growable_spaces()[-1])[0].name]
    assert isinstance(layer, GrowableLayer)
    first, second = layer.block(0), layer.block(1)
    assert first is not None and second is not None
    width = first.from_own.shape[1]  # what is shared was the first task's own
    return torch.equal(second.from_old[: first.rows, :width], first.from_own[: second.rows])


def test_every_phase_runs_where_none_is_switched_off() -> None:
    assert phases_of(plan_with()) == {"grow", "select", "prune"}


@pytest.mark.parametrize("phase", TOLD)
def test_an_empty_list_of_shares_switches_a_phase_off(phase: str) -> None:
    assert phases_of(plan_with(f"{phase}-at=")) == set(TOLD) - {phase}


def test_a_random_start_copies_nothing() -> None:
    assert begins_with_copies(begun(plan_with()))
    assert not begins_with_copies(begun(plan_with("start=random")))


def test_sharing_nothing_reads_nothing() -> None:
    shared, apart = begun(plan_with()), begun(plan_with("shared=0"))
    assert shared.net.reuse()[1][0] > 0
    assert apart.net.reuse() == [[0, 0], [0, 0]]
    assert phases_of(plan_with("shared=0")) == {"grow", "prune"}  # and nothing is to be selected
