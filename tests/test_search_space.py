"""Ranges and choices, and how options declare them beside their defaults."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from firefly_cl.errors import ConfigurationError
from firefly_cl.search_space import Choice, Range, searched, space_of
from firefly_cl.settings import read_settings


@dataclass(frozen=True)
class Options:
    strength: float = searched(1.0, Range(0.1, 10.0, log=True))
    steps: int = searched(3, Range(1, 8))
    kind: str = searched("soft", Choice(("soft", "hard")))
    memory: int = 100


@dataclass(frozen=True)
class More(Options):
    strength: float = searched(2.0, Range(1.0, 3.0))
    sharp: bool = searched(False, Choice((False, True)))


def test_a_declared_default_is_an_ordinary_default() -> None:
    assert Options() == Options(1.0, 3, "soft", 100) and Options.strength == 1.0
    given = {"strength": "0.5", "steps": "7", "kind": "hard"}
    assert read_settings(given, Options, "option") == Options(0.5, 7, "hard")


def test_a_class_adds_to_what_it_inherits_and_may_change_it() -> None:
    assert list(space_of(Options)) == ["strength", "steps", "kind"]
    space = space_of(More)
    assert space["strength"] == Range(1.0, 3.0) and space["steps"] == Range(1, 8)
    assert set(space) == {"strength", "steps", "kind", "sharp"}
    assert space_of(None) == {}


def test_numbers_have_three_digits_and_stay_inside() -> None:
    assert Range(0.0, 1.0).nearest(0.123456) == 0.123
    assert Range(1 / 3, 2 / 3).nearest(1 / 3) == 1 / 3  # 0.333 would lie below
    assert Range(1 / 3, 2 / 3).nearest(2 / 3) == 2 / 3  # and 0.667 above
    assert Range(1, 100_000).nearest(12_345) == 12_345


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Range(0.5, 2.0), (0.5, 1, 2.0), (0.49, 2.01, "1", True)),
        (Range(1, 4), (1, 4, 2.0), (0, 5, 2.5)),
        (Choice(("a", 1)), ("a", 1), ("b", 2, "1")),
    ],
)
def test_what_a_domain_holds(domain: Range | Choice, inside: tuple, outside: tuple) -> None:
    assert all(domain.holds(value) for value in inside)
    assert not any(domain.holds(value) for value in outside)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Range(2.0, 1.0),
        lambda: Range(1.0, 1.0),
        lambda: Range(0.0, 1.0, log=True),
        lambda: Range(0.0, float("inf")),
        lambda: Range(float("nan"), 1.0),
        lambda: Choice(("a", "a")),
        lambda: Choice(()),
    ],
)
def test_domains_with_nothing_to_draw_are_refused(make) -> None:
    with pytest.raises(ConfigurationError):
        make()
