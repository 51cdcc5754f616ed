"""Springs of online EWC, SI and MAS against Avalanche's penalties and against paths by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avalanche.training.plugins import EWCPlugin, MASPlugin
from avalanche.training.utils import ParamData, copy_params_dict
from torch import nn

from firefly_cl.baselines.ewc_online import OnlinePlugin
from firefly_cl.baselines.mas import SensitivityPlugin
from firefly_cl.baselines.multihead import MultiHead, blueprint_of, pixels_of
from firefly_cl.baselines.si import PathPlugin
from firefly_cl.baselines.springs import Springs
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup
from firefly_cl.scenarios import Scenario


@torch.no_grad()
def disturb(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weights in model.parameters():
        weights.add_(0.1 * torch.randn(weights.shape, generator=generator))


def pulled(springs: Springs, model: nn.Module) -> list[torch.Tensor]:
    for weights in model.parameters():
        weights.grad = torch.zeros_like(weights)
    springs.pull(model)
    return [weights.grad for weights in model.parameters() if weights.grad is not None]


def test_online_springs_equal_avalanches_online_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    springs, theirs = Springs(0.7), EWCPlugin(0.7, mode="online", decay_factor=0.6)
    for task in range(3):
        disturb(model, task)
        importances = {name: torch.rand_like(w) for name, w in model.named_parameters()}
        springs.replace(importances, model, kept=0.6)
        data = {name: ParamData(name, init_tensor=values) for name, values in importances.items()}
        theirs.update_importances(data, task)
        theirs.saved_params[task] = copy_params_dict(model)
    disturb(model, 9)
    state: Any = SimpleNamespace(
        model=model,
        loss=torch.zeros(1),
        device=torch.device("cpu"),
        clock=SimpleNamespace(train_exp_counter=3),
    )
    theirs.before_backward(state)
    torch.testing.assert_close(0.7 * springs.penalty(model), state.loss.squeeze())
    gradients = torch.autograd.grad(state.loss, list(model.parameters()))
    torch.testing.assert_close(pulled(springs, model), list(gradients))


def two_heads(setup: Setup) -> MultiHead:
    model = MultiHead(blueprint_of(setup).build(0), 0)
    for task in (0, 1):
        model.net.add_head(task, 2, torch.Generator().manual_seed(task))
    return model


def measured(plugin: Any, model: MultiHead, digits: Scenario, task: int, **stream: Any) -> None:
    """End task `task` for a plugin."""
    plugin.after_training_exp(
        SimpleNamespace(
            model=model,
            experience=digits.benchmark(**stream).train_stream[task],
            train_mb_size=1,  # ours takes gradients of images
            device=torch.device("cpu"),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            clock=SimpleNamespace(train_exp_counter=task),
        )
    )


def test_mas_equals_avalanches(digits: Scenario, setup_for: Callable[..., Setup]) -> None:
    setup = setup_for(digits)
    model = two_heads(setup)  # without batch norm: Avalanche measures in training mode
    springs, theirs = Springs(0.7), MASPlugin(lambda_reg=0.7)
    measured(SensitivityPlugin(springs, pixels_of(setup)), model, digits, 0)
    measured(theirs, model, digits, 0, normalised=True)
    disturb(model, 9)
    shared = [w for name, w in model.named_parameters() if ".heads." not in name]
    for name in list(theirs.importance):
        if ".heads." in name:
            del theirs.importance[name]
    state: Any = SimpleNamespace(
        model=model, loss=torch.ones(1), clock=SimpleNamespace(train_exp_counter=1)
    )
    theirs.before_backward(state)
    torch.testing.assert_close(1 + 0.7 * springs.penalty(model), state.loss.squeeze())
    gradients = torch.autograd.grad(state.loss, shared)
    pulled(springs, model)
    torch.testing.assert_close([w.grad for w in shared], list(gradients))
    assert max(float(g.abs().max()) for g in gradients) > 1e-3


def test_mas_holds_the_first_task_as_long_as_the_last(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    setup = setup_for(digits)
    model, springs, apart = two_heads(setup), Springs(1.0), []
    plugin = SensitivityPlugin(springs, pixels_of(setup))
    for task in range(2):
        disturb(model, task)
        alone = Springs(1.0)
        measured(SensitivityPlugin(alone, pixels_of(setup)), model, digits, task)
        measured(plugin, model, digits, task)
        apart.append(alone.stiffness)
    for name, stiffness in springs.stiffness.items():
        torch.testing.assert_close(stiffness, apart[0][name] + apart[1][name])
    assert sum(float(values.sum()) for values in apart[0].values()) > 0


def test_averaged_springs_are_the_mean_of_the_tasks_and_centred_on_the_last(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    setup = setup_for(digits, options={"average": "true"})
    learner = STRATEGIES.get("ewc-online")(setup)
    (plugin,) = (p for p in learner.strategy.plugins if isinstance(p, OnlinePlugin))
    model, apart = two_heads(setup), []
    for task in range(2):
        disturb(model, task)
        alone = Springs(1.0)
        measured(OnlinePlugin(alone, pixels_of(setup), 1.0), model, digits, task)
        measured(plugin, model, digits, task)
        apart.append(alone.stiffness)
    for name, stiffness in plugin.springs.stiffness.items():
        torch.testing.assert_close(stiffness, (apart[0][name] + apart[1][name]) / 2)
        assert torch.equal(plugin.springs.centre[name], model.get_parameter(name))
    assert sum(float(values.sum()) for values in apart[0].values()) > 0


def descend(plugin: PathPlugin, model: nn.Module, target: float, rate: float, steps: int) -> None:
    """Gradient descent on sum_i (i + 1) / 2 (w_i - target)^2."""
    strategy: Any = SimpleNamespace(model=model)
    plugin.before_training_exp(strategy)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, target).backward()
        plugin.after_backward(strategy)
        optimizer.step()
        plugin.after_update(strategy)
    plugin.after_training_exp(strategy)


def loss(model: nn.Module, target: float) -> torch.Tensor:
    weights = model.weight.squeeze(0)
    factors = torch.arange(1.0, len(weights) + 1)
    return (factors * (weights - target).square()).sum() / 2


def test_paths_add_up_to_the_fall_of_the_loss() -> None:
    model = nn.Linear(3, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    springs = Springs(1.0)
    before = loss(model, 0.2).item()
    descend(PathPlugin(springs, xi=1e-3), model, 0.2, rate=1e-3, steps=1500)
    fall = before - loss(model, 0.2).item()
    importances = springs.stiffness["weight"]
    moved = (model.weight.detach() - 1).square()
    paths = importances * (moved + 1e-3)
    assert paths.sum().item() == pytest.approx(fall, rel=1e-2)
    assert paths[0, 0] < paths[0, 1] < paths[0, 2]


def test_a_second_path_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    c, xi, rate = 0.8, 0.05, 0.1
    springs = Springs(c)
    plugin = PathPlugin(springs, xi)
    descend(plugin, model, 0.0, rate, 4)
    descend(plugin, model, 0.5, rate, 5)
    w, omega, centre = 1.0, 0.0, 0.0
    for target, steps in ((0.0, 4), (0.5, 5)):
        start, path = w, 0.0
        for _ in range(steps):
            slope = w - target
            step = -rate * (slope + 2 * c * omega * (w - centre))
            path -= slope * step  # of the loss alone, not of the penalty
            w += step
        omega, centre = omega + max(path, 0.0) / ((w - start) ** 2 + xi), w
    assert model.weight.item() == pytest.approx(w, rel=1e-5)
    assert springs.stiffness["weight"].item() == pytest.approx(omega, rel=1e-5)
    assert springs.centre["weight"].item() == pytest.approx(centre, rel=1e-5)


@pytest.mark.parametrize("name", ["si", "mas", "ewc-online"])
def test_springs_are_float32_and_only_on_the_trunk(
    name: str, digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    recipe = {"precision": "bfloat16", "mixup": 0.4, "epochs": 1, "channels_last": True}
    setup = setup_for(digits, recipe=recipe, backbone="resnet9", width=0.1)
    learner = STRATEGIES.get(name)(setup)
    learner.train(digits.benchmark().train_stream[0])
    state = learner.memory.state()
    trunk = [name for name, _ in learner.model.named_parameters() if ".heads." not in name]
    assert state.keys() == {f"{part} {n}" for n in trunk for part in ("stiffness", "centre")} | {
        "offset"
    }
    for part, values in state.items():
        assert values.dtype == (torch.float64 if part == "offset" else torch.float32)
        assert values.is_contiguous()
        if part.startswith("stiffness"):
            assert (values >= 0).all()
    assert sum(float(state[f"stiffness {name}"].sum()) for name in trunk) > 0
