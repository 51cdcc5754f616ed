"""Every shipped preset parses, and every strategy takes a step with it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from firefly_cl.benchmark.cell import setup_of
from firefly_cl.benchmark.plan import Request, cells_of
from firefly_cl.benchmark.presets import PRESETS
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import silent
from firefly_cl.scenarios import Images, Scenario, Task


def drawn(shape: tuple[int, int, int], tasks: int) -> Scenario:
    generator = torch.Generator().manual_seed(0)

    def images(task: int, n: int) -> Images:
        pixels = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
        return Images(pixels, torch.arange(n) % 2, task)

    return Scenario(
        "drawn",
        tuple(
            Task(t, str(t), ("a", "b"), images(t, 8), images(t, 4), images(t, 4))
            for t in range(tasks)
        ),
        (0.5,) * shape[0],
        (0.25,) * shape[0],
        shape,
        flip=False,
    )


def test_every_scenario_has_one() -> None:
    from firefly_cl.scenarios import SCENARIOS

    assert set(PRESETS) == set(SCENARIOS.names())


@pytest.mark.parametrize("strategy", STRATEGIES.names())
@pytest.mark.parametrize("name", PRESETS)
def test_takes_a_step(name: str, strategy: str) -> None:
    (cell,) = cells_of(Request(name, [strategy], [0], epochs=1))
    scenario = drawn((1, 8, 8) if name == "split-digits" else (3, 32, 32), 2)
    learner = STRATEGIES.get(strategy)(setup_of(cell, scenario, silent))
    for experience in scenario.benchmark().train_stream:
        learner.train(experience)
    assert learner.tasks_trained == 2
    for task in range(2):
        assert learner.logits(task, scenario.tasks[task].test.images).isfinite().all()
    if cell.budget is not None:
        assert learner.floats() <= cell.budget


@pytest.mark.parametrize("name", PRESETS)
def test_strategies_share_the_recipe(name: str) -> None:
    recipes = [cell.recipe for cell in cells_of(Request(name, ["firefly", "ewc", "replay"], [0]))]
    assert recipes[0] == recipes[1] == recipes[2]
    for preset in (PRESETS[name], *(PRESETS[name].of(s) for s in STRATEGIES.names())):
        assert dataclasses.is_dataclass(preset) and set(preset.strategies) <= set(
            STRATEGIES.names()
        )
