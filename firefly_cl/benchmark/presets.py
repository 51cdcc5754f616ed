"""Default settings of each scenario: backbone, width and recipe, tuned on validation data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Preset:
    """What a scenario runs with unless told otherwise.

    `recipe` holds fields of `Recipe` that differ from its defaults (`augmentation` is a mapping
    of fields of `Augmentation`); `options` are strategy-specific; `strategies` holds the fields
    of this class that one strategy changes. Mappings of a strategy are merged over the common.
    """

    backbone: str = "resnet9"
    width: float = 1.0
    constant_width: int | None = None
    budget: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    strategies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, strategy: str) -> Preset:
        """The preset of one strategy."""
        changes = dict(self.strategies.get(strategy, {}))
        for name in ("recipe", "options"):
            changes[name] = {**getattr(self, name), **changes.get(name, {})}
        return replace(self, **changes)


_CIFAR = Preset(width=0.25, recipe={"epochs": 40, "batch_size": 64})

PRESETS: Mapping[str, Preset] = {
    "split-digits": Preset(
        backbone="mlp",
        recipe={
            "epochs": 10,
            "batch_size": 32,
            "augmentation": {"crop_padding": 1, "flip": False},
        },
    ),
    "split-cifar10": _CIFAR,
    "split-cifar100": _CIFAR,
    "split-cifar100-superclass": _CIFAR,
    "image-folder": _CIFAR,
}


def preset_of(scenario: str, strategy: str) -> Preset:
    """The preset of a scenario and strategy; a scenario without one gets the common defaults."""
    return PRESETS.get(scenario, Preset()).of(strategy)
