"""The recipe: its schedule and the values that it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from firefly_cl.continual.precision import Precision, lay_out
from firefly_cl.continual.recipe import Recipe
from firefly_cl.errors import ConfigurationError


def test_one_cycle_agrees_with_torch() -> None:
    recipe, steps = Recipe(learning_rate=0.3), 50
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    # pct_start such that the peak falls on the same step: torch's phases end at whole steps - 1.
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.3,
        total_steps=steps,
        pct_start=(0.3 * (steps - 1) + 1) / steps,
        div_factor=25,
        final_div_factor=400,
        cycle_momentum=False,
    )
    for step in range(steps):
        assert recipe.rate(step, steps) == pytest.approx(oracle.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if step + 1 < steps:
            oracle.step()


def test_other_schedules() -> None:
    assert {Recipe(schedule="constant").rate(step, 9) for step in range(9)} == {0.05}
    cosine = [Recipe(schedule="cosine").rate(step, 9) for step in range(9)]
    assert cosine[0] == 0.05
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[4] == pytest.approx(0.05 * (1 + 1e-4) / 2)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_rate_of_a_single_step_is_positive(schedule: str) -> None:
    assert Recipe(schedule=schedule).rate(0, 1) > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": float("nan")},
        {"learning_rate": -0.1},
        {"momentum": 1.0},
        {"momentum": 0.0},
        {"weight_decay": -1.0},
        {"label_smoothing": 1.0},
        {"mixup": -0.2},
        {"cutmix": 1.5},
        {"schedule": "step"},
        {"optimizer": "lion"},
        {"precision": "float16"},
    ],
)
def test_impossible_values_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Recipe(**wrong)
    name, value = next(iter(wrong.items()))
    if wrong == {"momentum": 0.0}:
        name, value = "nesterov", True
    assert f"{name} is {value!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_precision_obeys_the_recipe() -> None:
    cpu = torch.device("cpu")
    assert Precision.of(Recipe(precision="float32"), cpu) == Precision(None, True)
    gpu = torch.device("meta")  # stands for any device that is no CPU
    assert Precision.of(Recipe(precision="float32"), gpu) == Precision(None, False)
    forced = Precision.of(Recipe(precision="bfloat16", channels_last=False), cpu)
    assert forced == Precision(torch.bfloat16, False)
    with forced.forward(cpu):
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def test_a_model_that_needs_it_keeps_its_plain_layout() -> None:
    cpu = Precision.of(Recipe(precision="float32"), torch.device("cpu"))
    for channels, stride, kernel, last in [(4, 2, 1, False), (4, 1, 1, True), (4, 2, 3, True)]:
        model = torch.nn.Sequential(torch.nn.Conv2d(channels, 8, kernel, stride))
        assert cpu.safe_for(model).channels_last is last
    wide = torch.nn.Conv2d(64, 8, 1, 2)
    assert cpu.safe_for(wide) == cpu


def test_layout_returns_to_canonical_strides_with_equal_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 1), torch.nn.Conv2d(6, 4, 3))
    before = {name: values.clone() for name, values in model.state_dict().items()}
    strides = {name: values.stride() for name, values in model.state_dict().items()}
    lay_out(model, channels_last=True)
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)
    lay_out(model, channels_last=False)
    for name, values in model.state_dict().items():
        assert values.stride() == strides[name]
        assert torch.equal(values, before[name])
