"""Continual learning by firefly neural architecture descent."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firefly_cl.continual import STRATEGIES
    from firefly_cl.continual.growing import FireflyPlugin
    from firefly_cl.continual.model import FireflyModel
    from firefly_cl.continual.plan import Plan
    from firefly_cl.continual.recipe import Recipe
    from firefly_cl.continual.strategy import FireflyStrategy
    from firefly_cl.growth import CRITERIA
    from firefly_cl.network import FireflyNet, extract
    from firefly_cl.scenarios import SCENARIOS, ScenarioOptions
    from firefly_cl.zoo import BACKBONES

__version__ = "0.1.0"

_HOMES = {
    "BACKBONES": "zoo",
    "CRITERIA": "growth",
    "FireflyModel": "continual.model",
    "FireflyNet": "network",
    "FireflyPlugin": "continual.growing",
    "FireflyStrategy": "continual.strategy",
    "Plan": "continual.plan",
    "Recipe": "continual.recipe",
    "SCENARIOS": "scenarios",
    "STRATEGIES": "continual",
    "ScenarioOptions": "scenarios",
    "extract": "network",
}

__all__ = [
    "BACKBONES",
    "CRITERIA",
    "SCENARIOS",
    "STRATEGIES",
    "FireflyModel",
    "FireflyNet",
    "FireflyPlugin",
    "FireflyStrategy",
    "Plan",
    "Recipe",
    "ScenarioOptions",
    "extract",
]


def __getattr__(name: str) -> Any:
    # torch and Avalanche take seconds to import: only what is asked for is
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
