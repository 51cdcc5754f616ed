"""What a task's network was before it was pruned teaches what is left of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from growing_streams import PLAN, RECIPE, growing, stream_of
from torch import Tensor

from firefly_cl.continual.distillation import Distillation
from firefly_cl.continual.plan import Plan, plan_of
from firefly_cl.errors import ConfigurationError
from firefly_cl.gates.pruning import GatePruning
from firefly_cl.network import floats

STREAM = [((0, 1), 24), ((0, 1, 2), 24)]
GATES = GatePruning(lam=1e-3, epochs=4)
TAUGHT = replace(
    PLAN,
    seed=1.0,
    grow_at=(),
    prune_at=(0.4, 0.6),
    gates=GATES,
    distillation=Distillation(0.7, 3.0),
)


class Lessons(SupervisedPlugin):
    """Size of the teacher, the loss of labels and that of both, at every step of every task."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, int | None, Tensor, Tensor, Tensor]] = []
        self.labelled = torch.tensor(0.0)

    def before_backward(self, strategy: Any, **kwargs: object) -> None:
        self.labelled = strategy.loss.detach().clone()

    def after_backward(self, strategy: Any, **kwargs: object) -> None:
        teacher = strategy.firefly._teacher
        taught = torch.zeros(0) if teacher is None else teacher.net(strategy.mb_x)
        size = None if teacher is None else floats(teacher.net)
        task = strategy.experience.current_experience
        logits = strategy.mb_output.detach()
        expected = self.labelled if teacher is None else by_hand(self.labelled, logits, taught)
        self.steps.append((task, size, self.labelled, strategy.loss.detach(), expected))


def by_hand(labelled: Tensor, logits: Tensor, taught: Tensor) -> Tensor:
    """0.7 of 9 KL(teacher, student) at temperature 3, 0.3 of the labels' loss."""
    q, p = torch.softmax(taught.double() / 3, 1), torch.softmax(logits.double() / 3, 1)
    return 0.3 * labelled + 0.7 * 9 * (q * (q.log() - p.log())).sum(1).mean()


def lessons(plan: Plan) -> tuple[Any, list[tuple[int, int | None, Tensor, Tensor, Tensor]]]:
    told = Lessons()
    strategy = growing(
        "mlp-bn", plan=plan, recipe=replace(RECIPE, epochs=5, mixup=0.3), plugins=[told]
    )
    for experience in stream_of(STREAM).train_stream:
        strategy.train(experience, eval_streams=[])
    return strategy, told.steps


def test_the_network_before_the_first_removal_teaches_to_the_end_of_the_task() -> None:
    strategy, steps = lessons(TAUGHT)
    for task in (0, 1):
        first, *_ = events = [e for e in strategy.firefly.events if e["task"] == task]
        assert len(events) == 2, "the second pruning keeps the teacher of the first"
        sizes = [size for number, size, *_ in steps if number == task]
        per_epoch = len(sizes) // 5
        assert sizes[: 2 * per_epoch] == [None] * (2 * per_epoch)
        assert sizes[2 * per_epoch :] == [first["parameters_before"]] * (3 * per_epoch)
        assert first["parameters"] < first["parameters_before"]
    for *_, whole, expected in steps:
        torch.testing.assert_close(whole.double(), expected.double(), rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(labelled, whole) for _, _, labelled, whole, _ in steps)
    assert strategy.firefly._teacher is None


def test_a_teacher_is_a_frozen_copy_that_keeps_its_statistics() -> None:
    strategy = growing("mlp-bn", plan=TAUGHT, recipe=replace(RECIPE, epochs=5))
    states: list[dict[str, Tensor]] = []

    class Watch(SupervisedPlugin):
        def after_update(self, strategy: Any, **kwargs: object) -> None:
            teacher = strategy.firefly._teacher
            if teacher is not None:
                states.append({k: v.clone() for k, v in teacher.net.state_dict().items()})
                assert all(p.grad is None for p in teacher.net.parameters())
                assert not teacher.net.training

    strategy.plugins.append(Watch())
    strategy.train(stream_of(STREAM).train_stream[0], eval_streams=[])
    assert len(states) > 1
    for name, values in states[0].items():
        assert torch.equal(values, states[-1][name])


@pytest.mark.parametrize("change", [{"distillation": Distillation()}, {"prune_at": ()}])
def test_without_weight_or_without_a_removal_nothing_teaches(change: dict[str, Any]) -> None:
    _, steps = lessons(replace(TAUGHT, **change))
    for _, size, labelled, whole, _ in steps:
        assert size is None
        assert torch.equal(labelled, whole)


def test_options_name_it() -> None:
    plan = plan_of({"distil": "0.5", "distil_temperature": "4"})
    assert plan.distillation == Distillation(0.5, 4.0)
    assert plan_of({}).distillation == Distillation(0.0, 2.0)


@pytest.mark.parametrize(
    ("weight", "temperature", "message"),
    [
        (-0.1, 2.0, r"distil is -0.1: it must be in \[0, 1\]"),
        (1.1, 2.0, r"distil is 1.1: it must be in \[0, 1\]"),
        (float("nan"), 2.0, "distil is nan"),
        (0.5, 0.0, "distil_temperature is 0.0: it must be above 0"),
        (0.5, float("inf"), "distil_temperature is inf"),
    ],
)
def test_values_that_cannot_work_are_refused(
    weight: float, temperature: float, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Distillation(weight, temperature)
