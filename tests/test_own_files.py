"""Files outside of the package, named by FIREFLY_IMPORT, are found by the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
FILES = {
    Path(name).name: text
    for name, text in re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
}


def command(folder: Path, *arguments: str, files: str) -> subprocess.CompletedProcess[str]:
    """Run firefly-cl in a folder with these files to import."""
    return subprocess.run(
        [sys.executable, "-m", "firefly_cl.cli", *arguments],
        cwd=folder,
        env={**os.environ, "FIREFLY_IMPORT": files},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_strategy_and_a_backbone_of_ones_own_run_in_workers(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/torch.py").write_text(FILES["anchor.py"])  # its name is its own affair
    (tmp_path / "plain3.py").write_text(FILES["plain3.py"])
    done = command(
        tmp_path,
        "run", "split-digits", "--strategy", "anchor", "--backbone", "plain3", "--tasks", "2",
        "--epochs", "1", "--seeds", "0,1", "--workers", "2", "--json",
        files=os.pathsep.join(["own/torch.py", str(tmp_path / "plain3.py")]),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout.splitlines()[-1])["runs"]
    assert [run["strategy"] for run in runs] == ["anchor", "anchor"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("absent.py", None, "absent.py, no Python file: correct it"),
        ("broken.py", "1 / 0", r"cannot be imported \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    name: str, text: str | None, says: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    done = command(tmp_path, "list", "strategies", files=str(tmp_path / name))
    assert done.returncode == 2 and re.search(says, done.stderr)
    assert len(done.stderr.splitlines()) == 1
