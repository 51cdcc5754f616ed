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

    def with_options(self, **options: str) -> Preset:
        """The preset with further options."""
        return replace(self, options={**self.options, **options})


# One recipe for all strategies. Images are few (2,250 a task): mixed batches and long training
# gave the most, width little. Turning and zooming, which blur, cost large carnivores
# several points and gained nothing on two other tasks. Tried on validation images of eight
# tasks of split-cifar100-superclass with one seed, on single networks and on networks that start
# from copies of the one before; the whole stream was not tuned.
_CIFAR = Preset(
    width=0.25,
    recipe={
        "epochs": 100,
        "learning_rate": 0.1,
        "weight_decay": 0.002,
        "mixup": 0.3,
        "cutmix": 0.5,
        "augmentation": {"jitter": 0.1},
    },
    strategies={
        "firefly": {
            "budget": 9_800_000,
            "options": {
                "start": "copies",
                "shared": "0",
                "growth": "0.04",
                "cost": "flops",
                "grow_at": "0.25",
            },
        },
    },
)

PRESETS: Mapping[str, Preset] = {
    # One recipe for all strategies, chosen on validation images (three seeds) among learning rates
    # of 0.05 and 0.15, and 10 and 20 epochs. Tuning was not equal: EWC and replay did better at
    # 0.15 than at the rate that all share, and only firefly's seed share was tried twice.
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


_THIN = Preset(
    backbone="vgg19",
    constant_width=16,
    recipe={"epochs": 10, "batch_size": 128, "learning_rate": 0.1},
)

GROWTH: Mapping[str, Preset] = {
    # A round of `grow`: thin networks on all classes at once; not tuned.
    "split-digits": Preset(
        backbone="mlp",
        constant_width=4,
        recipe={
            "epochs": 5,
            "batch_size": 32,
            "augmentation": {"crop_padding": 1, "flip": False},
        },
    ),
    "split-cifar10": _THIN,
    "split-cifar100": _THIN,
    "image-folder": _THIN,
}

_WIDE = Preset(
    backbone="vgg16",
    width=0.25,
    recipe={"epochs": 40, "batch_size": 128, "learning_rate": 0.1},
)

PRUNING: Mapping[str, Preset] = {
    # A training of `prune`: networks with units to spare, on all classes at once; not tuned.
    "split-digits": Preset(
        backbone="mlp",
        constant_width=64,
        recipe={
            "epochs": 10,
            "batch_size": 32,
            "augmentation": {"crop_padding": 1, "flip": False},
        },
    ),
    "split-cifar10": _WIDE,
    "split-cifar100": _WIDE,
    "image-folder": _WIDE,
}


def preset_of(scenario: str, strategy: str) -> Preset:
    """The preset of a scenario and strategy; a scenario without one gets the common defaults."""
    return PRESETS.get(scenario, Preset()).of(strategy)
