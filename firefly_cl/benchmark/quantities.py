"""How quantities are printed: fractions as percent, counts, bytes and seconds with units."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def percent(fraction: float | None) -> str:
    """A fraction in percent with one decimal; a dash for None, plain 0 for exactly zero."""
    if fraction is None:
        return "-"
    return "0" if fraction == 0 else f"{100 * fraction:.1f}".replace("-0.0", "0.0")


def percent_over(fractions: Sequence[float | None]) -> str:
    """Mean and, over several seeds, sample standard deviation, in percent."""
    values = [value for value in fractions if value is not None]
    if not values:
        return "-"
    if all(value == 0 for value in values):
        return percent(0)
    mean = statistics.fmean(values)
    middle = f"{100 * mean:.1f}".replace("-0.0", "0.0")  # plain 0 is for zeros only
    if len(values) < 2:
        return middle
    return f"{middle} ± {100 * statistics.stdev(values):.1f}"


def count(number: float) -> str:
    """A count with three significant digits and k, M, G or T."""
    return _scaled(number, 1000.0, ("", "k", "M", "G", "T"))


def size(number: float) -> str:
    """Bytes with three significant digits and a decimal unit."""
    return _scaled(number, 1000.0, (" B", " kB", " MB", " GB", " TB"))


def _scaled(number: float, step: float, units: Sequence[str]) -> str:
    at = 0
    # 999.5 would be printed as 1000
    while abs(number) >= step - 0.5 and at < len(units) - 1:
        number /= step
        at += 1
    if at == 0:
        return f"{number:.0f}{units[0]}"
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f}{units[at]}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min" if seconds >= 9.95 * 60 else f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def milliseconds(number: float | None) -> str:
    """Milliseconds with three significant digits; a dash for None."""
    if number is None:
        return "-"
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")
