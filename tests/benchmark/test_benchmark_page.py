"""docs/benchmark.md says what the code does: every key of the record, every option it names."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from firefly_cl.benchmark.records import SCHEMA, Record
from firefly_cl.commands import COMMANDS

PAGE = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text()


def test_every_key_of_the_record_is_described():
    section = PAGE.partition("## The record")[2].partition("## ")[0]
    described = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(described) == sorted(field.name for field in fields(Record))
    assert f"| `schema` | {SCHEMA};" in section


def test_every_option_it_names_exists():
    known = {
        "--" + field.name.replace("_", "-")
        for command in COMMANDS.values()
        for field in fields(command)
    }
    ours = re.sub(r"ray start[^\n`]*", "", PAGE)
    assert set(re.findall(r"--[a-z][a-z-]+", ours)) <= known
