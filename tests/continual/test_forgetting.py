"""Nothing that a task answers changes once the task has ended; same seed, same numbers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from growing_streams import RECIPE, SMALL_SEARCH, answers, drawn, growing, stream_of

from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.firefly import FireflyLearner
from firefly_cl.continual.learner import Setup
from firefly_cl.continual.plan import Plan
from firefly_cl.continual.recipe import Recipe
from firefly_cl.scenarios import Augmentation, Scenario

TASKS = [((0, 1), 24), ((2, 3, 4), 16), ((5, 6), 24)]
VARIANTS: dict[str, dict[str, Any]] = {
    "momentum and decay": {"momentum": 0.9, "weight_decay": 0.05},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
    "bfloat16": {"precision": "bfloat16"},
    "channels_last": {"precision": "bfloat16", "channels_last": True},
    "mixup": {"mixup": 0.4, "augmentation": Augmentation(crop_padding=1, flip=False)},
}


@pytest.mark.parametrize(
    ("variant", "backbone"),
    [
        *[(variant, "resnet9") for variant in VARIANTS],
        ("channels_last", "concat"),
        ("momentum and decay", "mobilenetv1"),
        ("adamw", "mlp"),
    ],
)
def test_logits_stay_bit_equal(variant: str, backbone: str) -> None:
    strategy = growing(backbone, recipe=dataclasses.replace(RECIPE, **VARIANTS[variant]))
    images, _ = drawn(range(7), 3, seed=5)
    ended = []
    for experience in stream_of(TASKS).train_stream:
        strategy.train(experience)
        ended.append(answers(strategy.model, experience.task_label, images))
        for task, before in enumerate(ended):
            assert torch.equal(answers(strategy.model, task, images), before)
    assert {event["task"] for event in strategy.firefly.events} == {0, 1, 2}
    assert not torch.equal(ended[0][:, :2], ended[2][:, :2])


def test_frozen_numbers_are_never_written() -> None:
    strategy = growing("resnet9")
    kept: dict[str, torch.Tensor] = {}
    for experience in stream_of(TASKS).train_stream:
        strategy.train(experience)
        state = strategy.net.state_dict()
        assert all(torch.equal(state[name], value) for name, value in kept.items())
        assert len(state) > len(kept)
        kept = copy.deepcopy(state)


def test_avalanches_own_loops_forget_nothing_either() -> None:
    strategy = growing("resnet9", recipe=None, train_epochs=2, train_mb_size=16)
    images, _ = drawn(range(7), 3, seed=5)
    ended = []
    for experience in stream_of(TASKS).train_stream:
        strategy.train(experience)
        ended.append(answers(strategy.model, experience.task_label, images))
    for task, before in enumerate(ended):
        assert torch.equal(answers(strategy.model, task, images), before)


# --- on digits, as the benchmark drives it ----------------------------------------------------

QUICK = Recipe(
    epochs=6, batch_size=32, augmentation=Augmentation(crop_padding=0), precision="float32"
)


def learner_on(scenario: Scenario, **changes: Any) -> FireflyLearner:
    setup = Setup(scenario, backbone="mlp", width=0.25, recipe=QUICK, **changes)
    learner = STRATEGIES.get("firefly")(setup)
    assert isinstance(learner, FireflyLearner)
    return learner


def accuracy(learner: FireflyLearner, scenario: Scenario, task: int) -> float:
    test = scenario.tasks[task].test
    hits = learner.logits(task, test.images).argmax(1) == test.labels
    return hits.float().mean().item()


@pytest.fixture(scope="module")
def trained(digits: Scenario) -> Callable[[int], tuple[FireflyLearner, list[list[float]]]]:
    """Learners by seed, with the accuracies on tasks 0 to i after task i."""
    cache: dict[int, tuple[FireflyLearner, list[list[float]]]] = {}

    def train(seed: int) -> tuple[FireflyLearner, list[list[float]]]:
        if seed not in cache:
            learner, rows = learner_on(digits, seed=seed), []
            for i, experience in enumerate(digits.benchmark().train_stream):
                learner.train(experience)
                rows.append([accuracy(learner, digits, j) for j in range(i + 1)])
            cache[seed] = learner, rows
        return cache[seed]

    return train


def test_digits_are_learnt_and_kept(trained: Any) -> None:
    _, rows = trained(0)
    assert min(rows[-1]) > 0.9
    for i, row in enumerate(rows):
        assert [rows[j][j] for j in range(i + 1)] == row  # forgetting is exactly zero


def test_same_seed_same_numbers(digits: Scenario, trained: Any) -> None:
    first, rows = trained(0)
    torch.rand(3)  # the global generator decides nothing
    again = learner_on(digits, seed=0)
    for experience in digits.benchmark().train_stream:
        again.train(experience)
    one, two = first.net.state_dict(), again.net.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [accuracy(again, digits, j) for j in range(3)] == rows[-1]
    assert again.growth_events == first.growth_events


def test_seeds_differ(trained: Any) -> None:
    one, two = (trained(seed)[0].net.state_dict() for seed in (0, 1))
    for name in ("from_own", "from_old"):
        weights = [n for n in one if n.endswith(name) and one[n].numel()]
        assert weights
        assert not any(n in two and torch.equal(one[n], two[n]) for n in weights)


def test_learner_counts_what_it_does(trained: Any) -> None:
    learner, _ = trained(0)
    assert learner.tasks_trained == 3
    assert learner.seconds["train"] > 0 and learner.seconds["grow"] > 0
    assert learner.floats() == sum(
        value.numel() for value in learner.net.state_dict().values() if value.is_floating_point()
    )
    assert learner.flops(2) > learner.flops(0)
    for widths in learner.widths().values():
        assert len(widths) == 3


def test_saved_model_answers_bit_equally(trained: Any, digits: Scenario, tmp_path: Any) -> None:
    from firefly_cl.continual.learner import load_logits

    learner, _ = trained(0)
    learner.save(tmp_path)
    logits = load_logits(tmp_path)
    for task in range(3):
        images = digits.tasks[task].test.images
        assert torch.equal(logits(task, images), learner.logits(task, images))


def test_options_are_the_plans(digits: Scenario) -> None:
    learner = learner_on(digits, options={"grow-at": "", "seed": "0.5", "patience": "0"})
    plan = learner.strategy.firefly.plan
    assert plan == Plan(grow_at=(), seed=0.5, patience=0)
    assert SMALL_SEARCH.keys() <= vars(learner.strategy.firefly.criterion).keys()
