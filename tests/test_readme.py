"""README.md: the example runs, and every file, command, option and target that it names exists."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from firefly_cl import cli
from firefly_cl.commands import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.filterwarnings("ignore:no QP solver")
def test_the_example_learns_and_forgets_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example, after = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in example.splitlines() if line]
    assert len(lines) == 8
    names: dict[str, Any] = {}
    exec("\n".join(lines[:-1]), names)
    metrics = eval(lines[-1], names)
    out = capsys.readouterr().out
    [accuracy] = [v for name, v in metrics.items() if name.startswith("Top1_Acc_Stream")]
    assert accuracy > 0.8  # chance is 0.5
    assert "Top1_Acc_Stream" in out
    assert len(names["cl"].net.tasks) == 5
    exec(after, names)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(names["first"](x), names["model"](x, 0))


@pytest.mark.parametrize(
    ("records", "page", "grid"),
    [
        ("benchmarks/records benchmarks/accuracy", "README.md", "benchmarks/accuracy.toml"),
        ("benchmarks/baselines", "docs/baselines.md", "benchmarks/split_cifar100.toml"),
        ("benchmarks/literature", "docs/literature.md", "benchmarks/literature.toml"),
        ("benchmarks/records/growth", "docs/growth.md", None),
        ("benchmarks/class_incremental", "docs/benchmark.md", None),
        ("benchmarks/ablations", "docs/ablations.md", "benchmarks/ablations.toml"),
        ("benchmarks/pruning", "docs/pruning.md", None),
        (
            "benchmarks/accuracy benchmarks/earlier/accuracy",
            "docs/accuracy.md",
            "benchmarks/accuracy.toml",
        ),
    ],
)
def test_tables_are_drawn_from_the_published_records(
    records: str, page: str, grid: str | None, tmp_path: Path
) -> None:
    published = (ROOT / page).read_text()
    drawn = tmp_path / "page.md"
    drawn.write_text(published)
    folders = [str(ROOT / folder) for folder in records.split()]
    arguments = ["report", *folders, "--markdown", str(drawn)]
    arguments += [] if grid is None else ["--grid", str(ROOT / grid)]
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 0
    assert drawn.read_text() == published, "redraw the tables: make report"


def test_commands_are_described_in_their_own_words() -> None:
    section = README.partition("## Command line")[2].partition("\n## ")[0]
    described = dict(re.findall(r"^- `(\w+)`: (.*?)(?=^- |^$)", section, re.MULTILINE | re.DOTALL))
    assert set(described) == set(COMMANDS)
    for name, text in described.items():
        first = (COMMANDS[name].__doc__ or "").partition("\n\n")[0]
        assert " ".join(text.split()).rstrip(".").casefold() == (
            " ".join(first.split()).rstrip(".").casefold()
        )


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page: str) -> None:
    known = {
        "--" + field.name.replace("_", "-")
        for command in COMMANDS.values()
        for field in fields(command)
    }
    text = (ROOT / page).read_text()
    calls = re.findall(r"firefly-cl [^\n`]*", text) + re.findall(r"`(--[^`]*)`", text)
    assert set(re.findall(r"--[a-z][a-z-]+", " ".join(calls))) <= known


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target
    for path in re.findall(r"`((?:firefly_cl|scenarios|baselines|docs|examples)/[\w./]*)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:`|^    )make (\w+)", (ROOT / page).read_text(), re.MULTILINE)
    assert set(named) <= targets


@pytest.mark.parametrize("page", ["README.md", "docs/method.md", "docs/architecture.md"])
def test_lines_fit_80_columns(page: str) -> None:
    in_table = False
    for line in (ROOT / page).read_text().splitlines():
        if line.startswith("<!-- "):
            in_table = line.startswith("<!-- table:")
        assert in_table or len(line) <= 80, line
