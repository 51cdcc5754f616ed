"""How a network is trained on one task: one recipe for every strategy that is compared."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from firefly_cl.errors import ConfigurationError
from firefly_cl.scenarios.augmentation_settings import AugmentationSettings

if TYPE_CHECKING:
    from firefly_cl.scenarios import Augmentation

SCHEDULES = ("one-cycle", "cosine", "constant")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("auto", "float32", "bfloat16")


def _augmentation() -> Augmentation:
    from firefly_cl.scenarios import Augmentation  # loads torch, which the defaults do without

    return Augmentation()


@dataclass(frozen=True)
class Recipe:
    """Epochs, optimizer, schedule, augmentation and precision of the training on one task.

    `learning_rate` is the peak of the schedule; `mixup` is the parameter of the beta
    distribution (0: off), `cutmix` the share of the batches that are mixed by CutMix instead
    (batches of images only); `channels_last` None lets the hardware decide, and is overruled
    where a model needs the plain layout (`Precision.safe_for`). `mirrored` answers by the mean of
    the logits of an image and its mirror image, where the scenario's images may be mirrored;
    `shifted` by the mean over the image and its shifts by so many pixels in eight directions (0:
    off). Operations are counted for all of these views. A head that reads n features learns at
    `head_rate` / n of the rate, at most at the rate itself: without a norm behind it, its steps
    grow with the square of what it reads.
    Raises ConfigurationError where a value cannot work.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    head_rate: float = 4.0
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    augmentation: Augmentation = field(default_factory=_augmentation)
    precision: str = "auto"
    channels_last: bool | None = None
    optimizer: str = "sgd"
    mirrored: bool = False
    shifted: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        _require("epochs", self.epochs, self.epochs >= 1, "at least 1")
        _require("batch_size", self.batch_size, self.batch_size >= 2, "at least 2")
        rate = self.learning_rate
        _require("learning_rate", rate, math.isfinite(rate) and rate > 0, "a number above 0")
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        _require(
            "nesterov",
            self.nesterov,
            not self.nesterov or self.optimizer != "sgd" or self.momentum > 0,
            "False where momentum is 0",
        )
        _require("head_rate", self.head_rate, self.head_rate > 0, "a number above 0")
        decay = self.weight_decay
        _require("weight_decay", decay, math.isfinite(decay) and decay >= 0, "0 or more")
        smoothing = self.label_smoothing
        _require("label_smoothing", smoothing, 0 <= smoothing < 1, "in [0, 1)")
        _require("mixup", self.mixup, math.isfinite(self.mixup) and self.mixup >= 0, "0 or more")
        _require("cutmix", self.cutmix, 0 <= self.cutmix <= 1, "in [0, 1]")
        _require("shifted", self.shifted, self.shifted >= 0, "pixels, 0 or more")
        _choose("schedule", self.schedule, SCHEDULES)
        _choose("optimizer", self.optimizer, OPTIMIZERS)
        _choose("precision", self.precision, PRECISIONS)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`.

        one-cycle rises over the first three tenths of the steps from a twenty-fifth of the
        peak and falls to nearly nothing, both along a cosine (Smith and Topin 2019); momentum
        stays as it is. cosine only falls.
        """
        if self.schedule == "constant":
            return self.learning_rate
        last = max(steps - 1, 1)
        at = min(step, last) / last
        if self.schedule == "cosine":
            return _cosine(self.learning_rate, self.learning_rate * 1e-4, at)
        rise = 0.3
        if at < rise:
            return _cosine(self.learning_rate / 25, self.learning_rate, at / rise)
        return _cosine(self.learning_rate, self.learning_rate * 1e-4, (at - rise) / (1 - rise))


def defaults() -> dict[str, Any]:
    """Every field of `Recipe` with its default, as plain values; loads no torch."""
    return {
        each.name: asdict(AugmentationSettings()) if each.name == "augmentation" else each.default
        for each in fields(Recipe)
    }


def _cosine(start: float, end: float, at: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * at)) / 2


def _require(name: str, found: object, good: bool, expected: str) -> None:
    if not good:
        raise ConfigurationError(f"{name} is {found!r}; it must be {expected}")


def _choose(name: str, found: str, choices: tuple[str, ...]) -> None:
    _require(name, found, found in choices, "one of " + ", ".join(choices))
