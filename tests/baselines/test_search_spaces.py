"""What `firefly-cl tune` searches of each strategy: values that work, and what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from firefly_cl.benchmark.plan import Request, cells_of
from firefly_cl.benchmark.presets import NAMED
from firefly_cl.benchmark.search import RECIPE, as_option
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import read_options
from firefly_cl.continual.recipe import OPTIMIZERS, Recipe
from firefly_cl.search_space import Choice, Domain, Range, Value, space_of

PAGE = (Path(__file__).parents[2] / "docs" / "baselines.md").read_text()


def ends(domain: Domain) -> tuple[Value, ...]:
    return domain.values if isinstance(domain, Choice) else (domain.low, domain.high)


@pytest.mark.parametrize("strategy", STRATEGIES.names())
def test_options_take_their_whole_space_and_begin_in_it(strategy: str) -> None:
    kind = STRATEGIES.options(strategy)
    for name, domain in space_of(kind).items():
        assert kind is not None and domain.holds(getattr(kind(), name))
        for value in ends(domain):
            options = read_options({name: as_option(value)}, kind)
            assert getattr(options, name) == value


def test_recipes_take_their_whole_space_and_begin_in_it() -> None:
    assert set(RECIPE) == set(OPTIMIZERS)
    for optimizer, space in RECIPE.items():
        for name, domain in space.items():
            for value in ends(domain):
                assert getattr(Recipe(optimizer=optimizer, **{name: value}), name) == value
    for preset in NAMED.values():
        (cell,) = cells_of(Request("split-digits", ["naive"], [0], preset=preset))
        for name, domain in RECIPE["sgd"].items():
            assert domain.holds(cell.recipe[name]), preset.name


def test_the_page_tells_what_is_searched() -> None:
    section = PAGE.partition("| name | searched |\n|---|---|\n")[2].partition("\n\n")[0]
    told = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", section, re.MULTILINE))
    declared = {name: shown(space_of(STRATEGIES.options(name))) for name in STRATEGIES.names()}
    assert told == {name: text for name, text in declared.items() if text}


def shown(space: dict[str, Domain]) -> str:
    return "; ".join(f"`{name}`: {_shown(domain)}" for name, domain in space.items())


def _shown(domain: Domain) -> str:
    if isinstance(domain, Range):
        return f"{domain.low:.6g} to {domain.high:.6g}{' (log)' if domain.log else ''}"
    return ", ".join(f"`{as_option(value)}`" for value in domain.values)
