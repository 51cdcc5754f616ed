"""`firefly-cl tune` on the digits with strategies that train: found again, sealed, and it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_fakes import InThisProcess, Sealed

from firefly_cl import cli
from firefly_cl.benchmark import placement
from firefly_cl.benchmark.records import read_record
from firefly_cl.scenarios import SCENARIOS

GRID = """
epochs = 1
[scenarios.split-digits]
[strategies.ewc]
options = { ewc_lambda = 10 }
[strategies.replay]
options = { mem_size = 20 }
"""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("grid.toml").write_text(GRID)


def tune(monkeypatch: pytest.MonkeyPatch, *arguments: str, stop_after: int | None = None) -> int:
    with monkeypatch.context() as patch:
        patch.setattr(placement, "LocalProcesses", lambda *a: InThisProcess(stop_after))
        return cli.execute(cli._parse(["tune", "grid.toml", "--tasks", "2", *arguments]))


def scores(out: str) -> list[tuple[Any, Any]]:
    trials = [json.loads(path.read_bytes()) for path in sorted(Path(out).rglob("trial-*.json"))]
    return [(trial["settings"], trial["scores"]) for trial in trials]


def test_the_search_is_sealed_found_again_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    build = SCENARIOS.get("split-digits")

    def sealed(options: Any) -> Any:
        found = build(options)
        return replace(found, tasks=tuple(replace(t, test=Sealed()) for t in found.tasks))  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setitem(SCENARIOS._objects, "split-digits", sealed)
        assert tune(monkeypatch, "--trials", "2", "--out", "whole") == 0
        assert tune(monkeypatch, "--trials", "2", "--out", "cut", stop_after=3) == 130
        assert tune(monkeypatch, "--trials", "2", "--out", "cut") == 0
    assert len(scores("whole")) == 4 and scores("cut") == scores("whole")
    assert {settings["options.ewc_lambda"] for settings, _ in scores("whole")[:2]} > {10.0}
    tuned = Path("whole/tuned.toml")
    tuned.write_text(f"tasks = 1\n{tuned.read_text()}")  # a task is enough here
    monkeypatch.setattr(placement, "LocalProcesses", lambda *a: InThisProcess())
    assert cli.execute(cli._parse(["benchmark", str(tuned)])) == 0
    for strategy in ("ewc", "replay"):
        assert read_record(Path(f"runs-tuned/split-digits/{strategy}-seed0")).finished


def test_more_tasks_than_the_stream_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(monkeypatch, "--tasks", "6") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "ask for 5 or fewer" in err
    assert not list(Path("tuning").rglob("*.json"))
