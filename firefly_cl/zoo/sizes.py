"""The sizes that a backbone is asked for, checked once for all families."""

from __future__ import annotations

import math
from dataclasses import dataclass

from firefly_cl.errors import ConfigurationError

FEWEST_CHANNELS = 4


@dataclass(frozen=True)
class Sizes:
    """What a backbone reads and answers, and how wide it is; raises ConfigurationError."""

    n_classes: int
    in_channels: int
    image_size: int
    width: float
    constant_width: int | None

    def __post_init__(self) -> None:
        for name in ("n_classes", "in_channels", "image_size"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigurationError(f"{name} is {value}: give a whole number of at least 1")
        if not (math.isfinite(self.width) and self.width > 0):
            raise ConfigurationError(
                f"width is {self.width}: give a factor above 0, such as 0.25 for a quarter"
            )
        if self.constant_width is not None and self.constant_width < 1:
            raise ConfigurationError(
                f"constant_width is {self.constant_width}: "
                "give at least 1 channel, or leave it out to scale by width"
            )

    def channels(self, published: int) -> int:
        """Channels of a layer that has `published` channels in the paper's network.

        `constant_width` wins over `width`; scaled widths never fall below FEWEST_CHANNELS.
        """
        if self.constant_width is not None:
            return self.constant_width
        return max(FEWEST_CHANNELS, round(published * self.width))


def can_halve(side: int) -> bool:
    """Whether a map of `side` pixels still has 2x2 pixels after halving."""
    return side >= 4
