"""docs/settings.md: every field of the recipe and every option of firefly, with its default."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from firefly_cl.continual.plan import Options
from firefly_cl.continual.recipe import Recipe
from firefly_cl.scenarios import Augmentation

PAGE = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()


def told(section: str) -> dict[str, str]:
    part = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([\w.]+)` \| (.*?) ?\|", part, re.MULTILINE))


def written(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_every_field_of_the_recipe_is_told_with_its_default() -> None:
    parts = [("", Recipe()), ("augmentation.", Augmentation())]
    assert told("The training recipe") == {
        f"{prefix}{field.name}": written(getattr(part, field.name))
        for prefix, part in parts
        for field in fields(part)
        if field.name != "augmentation"
    }


def test_every_option_of_firefly_is_told_with_its_default() -> None:
    found = told("Options of firefly")
    assert found.pop("settings.NAME") == ""
    assert found == {
        field.name: written(getattr(Options(), field.name)) for field in fields(Options)
    }
