"""A registry lists names from source without importing, and imports what is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firefly_cl.errors import ConfigurationError, FireflyError, UnknownName
from firefly_cl.registry import Registry, suggestion

PACKAGE = "registry_probe"

INIT = f'''
from firefly_cl.registry import Registry, suggestion

FRUIT = Registry("fruit", "{PACKAGE}")
'''

APPLE = f'''"""A pome of the rose family.

Second paragraph.
"""
from {PACKAGE} import FRUIT


@FRUIT.register("apple")
def apple() -> str:
    """Doc of the function."""
    return "crunch"
'''

CITRUS = f'''"""Citrus fruit."""
from {PACKAGE} import FRUIT


@FRUIT.register("lemon")
class Lemon:
    pass


@FRUIT.register("orange")
class Orange:
    """Sweet.

    And round."""
'''

EXPLODES = f'''"""Fails on import."""
from {PACKAGE} import FRUIT

raise RuntimeError("imported")


@FRUIT.register("durian")
def durian() -> None:
    pass
'''

UNDOCUMENTED = f"""
from {PACKAGE} import FRUIT


@FRUIT.register("pear")
def pear() -> None:
    pass
"""


@pytest.fixture
def fruit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    folder = tmp_path / PACKAGE
    folder.mkdir()
    sources = {
        "__init__": INIT,
        "apple": APPLE,
        "citrus": CITRUS,
        "explodes": EXPLODES,
        "undocumented": UNDOCUMENTED,
    }
    for stem, source in sources.items():
        (folder / f"{stem}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    for module in [m for m in sys.modules if m.partition(".")[0] == PACKAGE]:
        monkeypatch.delitem(sys.modules, module)
    registry = importlib.import_module(PACKAGE).FRUIT
    yield registry
    for module in [m for m in sys.modules if m.partition(".")[0] == PACKAGE]:
        del sys.modules[module]


def imported() -> set[str]:
    return {m.partition(".")[2] for m in sys.modules if m.startswith(f"{PACKAGE}.")}


def test_names_are_sorted_and_read_without_import(fruit):
    assert fruit.names() == ["apple", "durian", "lemon", "orange", "pear"]
    assert imported() == set()


def test_describe_is_the_first_line_of_the_file_without_import(fruit):
    assert fruit.describe("apple") == "A pome of the rose family."
    assert fruit.describe("lemon") == "Citrus fruit."  # it says nothing of its own
    assert fruit.describe("orange") == "Sweet."
    assert fruit.describe("durian") == "Fails on import."
    assert imported() == set()


def test_describe_is_empty_for_a_file_without_docstring(fruit):
    assert fruit.describe("pear") == ""


def test_get_imports_only_the_file_that_registers_the_name(fruit):
    assert fruit.get("apple")() == "crunch"
    assert imported() == {"apple"}
    assert fruit.get("orange").__name__ == "Orange"
    assert imported() == {"apple", "citrus"}


def test_get_gives_the_same_object_again(fruit):
    assert fruit.get("lemon") is fruit.get("lemon")


def test_an_import_error_is_not_hidden(fruit):
    with pytest.raises(RuntimeError, match="imported"):
        fruit.get("durian")


def test_register_returns_the_object_unchanged(fruit):
    def cherry() -> None:
        """A stone fruit.

        More.
        """

    assert fruit.register("cherry")(cherry) is cherry
    assert fruit.get("cherry") is cherry
    assert fruit.describe("cherry") == "A stone fruit."
    assert "cherry" in fruit.names()


@pytest.mark.parametrize("ask", ["get", "describe"])
def test_unknown_name_suggests_the_nearest(fruit, ask):
    with pytest.raises(UnknownName) as error:
        getattr(fruit, ask)("lemom")
    assert str(error.value) == "unknown fruit 'lemom': did you mean 'lemon'?"
    assert isinstance(error.value, ConfigurationError) and isinstance(error.value, FireflyError)


def test_unknown_name_near_nothing_lists_all(fruit):
    with pytest.raises(UnknownName) as error:
        fruit.get("xyz")
    assert str(error.value) == (
        "unknown fruit 'xyz': choose from apple, durian, lemon, orange, pear"
    )


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("mem_size", ("prune_tries", "patience", "seed", "early")),
        ("head", ("shared", "private", "growth")),
        ("foo", ("uniform", "random", "tiny", "firefly")),
        ("help", ("report", "run", "grow")),
    ],
)
def test_nothing_far_is_suggested(name: str, known: tuple[str, ...]):
    assert suggestion(name, known) == f"choose from {', '.join(sorted(known))}"
    assert suggestion(name, ()) == "there are none"


def test_a_package_that_is_absent_has_no_names():
    assert Registry("thing", "registry_probe_absent").names() == []
