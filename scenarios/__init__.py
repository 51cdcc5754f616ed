"""The scenarios of firefly_cl: streams of tasks, and the fast batches they are trained from."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from firefly_cl.registry import Registry

if TYPE_CHECKING:
    from firefly_cl.scenarios.augmentation import Augmentation
    from firefly_cl.scenarios.batches import Batches
    from firefly_cl.scenarios.images import Images, images_of, normalise
    from firefly_cl.scenarios.options import ScenarioOptions
    from firefly_cl.scenarios.scenario import Scenario, Task

SCENARIOS = Registry("scenario", "firefly_cl.scenarios")

__all__ = [
    "SCENARIOS",
    "Augmentation",
    "Batches",
    "Images",
    "Scenario",
    "ScenarioOptions",
    "Task",
    "images_of",
    "normalise",
]

_HOMES = {
    "Augmentation": "augmentation",
    "Batches": "batches",
    "Images": "images",
    "Scenario": "scenario",
    "ScenarioOptions": "options",
    "Task": "scenario",
    "images_of": "images",
    "normalise": "images",
}


def __getattr__(name: str) -> Any:
    # The command line lists scenarios without paying for the import of torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
