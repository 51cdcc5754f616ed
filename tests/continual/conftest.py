"""Small streams for the tests of the growing strategy."""

from __future__ import annotations

import pytest
import torch

from firefly_cl.scenarios import SCENARIOS, Scenario, ScenarioOptions


@pytest.fixture(scope="session")
def digits() -> Scenario:
    return SCENARIOS.get("split-digits")(ScenarioOptions(first_tasks=3))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
