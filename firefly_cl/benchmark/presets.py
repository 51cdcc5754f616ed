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
    # One recipe for all strategies, from mean validation accuracies (3 seeds, a fifth of the
    # training images held out, batches of 16; replay keeps 100 of the 1,437 images):
    #                          firefly  naive   ewc  replay
    #   rate 0.05, 20 epochs      99.1   91.1  98.8    98.7
    #   rate 0.05, 10 epochs      98.0   91.5  98.1    98.4
    #   rate 0.15, 20 epochs      98.8   83.9  99.2    99.2
    #   rate 0.15, 10 epochs      98.5   83.9  99.0    99.2
    # Firefly with a tenth of the units as seeds, growing by 0.15: 98.0 (rate 0.05, 20 epochs).
    "split-digits": Preset(
        backbone="mlp",
        width=0.25,
        recipe={
            "epochs": 20,
            "batch_size": 16,
            "augmentation": {"crop_padding": 1, "flip": False},
        },
        strategies={
            "firefly": {"options": {"seed": "0.15"}},
            "replay": {"options": {"mem_size": "100"}},
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
