"""Where `firefly-cl tune` looks for a setting: declared beside its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from firefly_cl.errors import ConfigurationError

T = TypeVar("T")
Value = bool | int | float | str

_DOMAIN = "searched over"
_DIGITS = 3


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both are written as whole.

    log: draw the logarithm evenly. Raises ConfigurationError where there is nothing to draw.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        """Check the ends."""
        if not -math.inf < self.low < self.high < math.inf:
            raise ConfigurationError(
                f"a range from {self.low} to {self.high} is empty: give low below high"
            )
        if self.log and self.low <= 0:
            raise ConfigurationError(
                f"a range from {self.low} has no logarithms: give low above 0, or log=False"
            )

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Value) -> bool:
        """Whether `value` is one of them."""
        if isinstance(value, (str, bool)) or (self.whole and value != int(value)):
            return False
        return self.low <= value <= self.high

    def nearest(self, value: float) -> float:
        """The number of three digits next to `value` that is still in the range."""
        rounded = int(value) if self.whole else float(f"{value:.{_DIGITS}g}")
        return min(max(rounded, self.low), self.high)

    def at(self, share: float) -> float:
        """The number, of three digits, with a share from 0 to 1 of the range below it."""
        end = self.high + self.whole
        if self.log:
            return self.nearest(self.low * (end / self.low) ** share)
        return self.nearest(self.low + share * (end - self.low))


@dataclass(frozen=True)
class Choice:
    """One of several values; raises ConfigurationError for fewer than two."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        """Check how many there are."""
        if len(set(self.values)) < 2:
            raise ConfigurationError(f"a choice of {self.values} is none: give two values or more")

    def holds(self, value: Value) -> bool:
        """Whether `value` is one of them."""
        return value in self.values

    def at(self, share: float) -> Value:
        """The value at a share from 0 to 1 of the list."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


Domain = Range | Choice


def searched(default: T, domain: Domain) -> T:
    """The default of a field of an options dataclass that `firefly-cl tune` searches `domain` for.

    Only for what costs neither memory nor operations: with those any strategy gets better.
    """
    declared: Any = field(default=default, metadata={_DOMAIN: domain})
    return declared  # type: ignore[no-any-return]


def space_of(options: type | None) -> dict[str, Domain]:
    """The searched fields of an options dataclass, by name; none for a strategy without options."""
    if options is None:
        return {}
    return {
        each.name: each.metadata[_DOMAIN] for each in fields(options) if _DOMAIN in each.metadata
    }
