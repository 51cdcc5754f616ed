"""Small streams and quick setups for the baselines' tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from quick_training import QUICK

from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Learner, Setup
from firefly_cl.scenarios import SCENARIOS, Scenario, ScenarioOptions


@pytest.fixture(scope="session")
def digits() -> Scenario:
    return SCENARIOS.get("split-digits")(ScenarioOptions(first_tasks=2))


@pytest.fixture(scope="session")
def three_digits() -> Scenario:
    return SCENARIOS.get("split-digits")(ScenarioOptions(first_tasks=3))


@pytest.fixture(scope="session")
def setup_for() -> Callable[..., Setup]:
    def build(scenario: Scenario, **changes: Any) -> Setup:
        recipe = dataclasses.replace(QUICK, **changes.pop("recipe", {}))
        values: dict[str, Any] = {"backbone": "mlp", "width": 0.25, **changes}
        return Setup(scenario, recipe=recipe, **values)

    return build


@pytest.fixture(scope="session")
def trained(setup_for: Callable[..., Setup]) -> Callable[..., Learner]:
    def train(name: str, scenario: Scenario, **changes: Any) -> Learner:
        learner: Learner = STRATEGIES.get(name)(setup_for(scenario, **changes))
        for experience in scenario.benchmark().train_stream:
            learner.train(experience)
        return learner

    return train


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
