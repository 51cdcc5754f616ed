"""Verify: clean runs pass; a changed weight, a forgetful strategy and damaged files do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmark_fakes import FakeLearner, cell, load, scenario
from rich.console import Console
from safetensors.torch import load_file, save_file

from firefly_cl.benchmark.cell import run_cell
from firefly_cl.benchmark.environment import versions
from firefly_cl.benchmark.verify import (
    TaskCheck,
    _bit_equal,
    print_checks,
    unlike_here,
    verify,
)
from firefly_cl.errors import FileError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run(tmp_path)
    return tmp_path


def run(folder: Path, **options: str) -> None:
    run_cell(
        cell(options=options),
        scenario(),
        FakeLearner,
        folder,
        threads=torch.get_num_threads(),
        progress=lambda progress: None,
    )


def test_a_clean_run_is_bit_equal(folder: Path):
    checks = verify(folder, load)
    assert [(check.name, check.difference, check.equal) for check in checks] == [
        (f"task-{task}", 0.0, True) for task in range(3)
    ]


def test_a_weight_changed_by_one_bit_is_found(folder: Path):
    path = folder / "model" / "fake.safetensors"
    weights = load_file(path)
    weights["1"] = torch.nextafter(weights["1"], torch.tensor(9.0))
    save_file(weights, path)
    checks = verify(folder, load)
    assert [check.equal for check in checks] == [True, False, True]
    assert 0 < checks[1].difference < 1e-6
    assert not checks[1].as_saved


def test_forgetting_is_told_from_damage(tmp_path: Path):
    run(tmp_path, forget="yes")
    checks = verify(tmp_path, load)
    assert [check.equal for check in checks] == [True, False, True]
    assert checks[1].difference == pytest.approx(1.0)
    assert all(check.as_saved for check in checks)


def test_another_environment_is_told_from_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert unlike_here(folder) == []
    changed = [TaskCheck(0, "task-0", 1e-7, equal=False, as_saved=False)]
    print_checks(folder, changed, Console(), [])
    assert "the files are not those that the run saved" in capsys.readouterr().out
    monkeypatch.setattr(
        "firefly_cl.benchmark.environment.versions", lambda: {**versions(), "commit": "other"}
    )
    print_checks(folder, changed, Console(width=200), unlike_here(folder))
    assert "1 of 1 tasks changed: the run had another commit, which" in capsys.readouterr().out


def test_what_an_older_record_does_not_tell_is_not_compared(folder: Path):
    file = folder / "record.json"
    content = json.loads(file.read_text())
    content["hardware"]["instructions"] = "others"
    file.write_text(json.dumps(content))
    assert unlike_here(folder) == ["instructions"]
    del content["hardware"]["instructions"]
    file.write_text(json.dumps(content))
    assert unlike_here(folder) == []


def test_bits_are_compared_not_values():
    one, nan = torch.tensor([1.0]), torch.tensor([float("nan")])
    assert _bit_equal(nan, nan.clone())
    assert not _bit_equal(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not _bit_equal(one, one.double())
    assert not _bit_equal(one, one.repeat(2))


@pytest.mark.parametrize("name", ["probe.safetensors", "record.json"])
def test_truncated_files_are_refused(folder: Path, name: str):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(FileError, match="damaged") as caught:
        verify(folder, load)
    assert "\n" not in str(caught.value)


def test_a_missing_probe_is_refused(folder: Path):
    (folder / "probe.safetensors").unlink()
    with pytest.raises(FileError, match="no probe"):
        verify(folder, load)


def test_a_probe_without_a_task_is_refused(folder: Path):
    tensors = load_file(folder / "probe.safetensors")
    short = {name: tensor for name, tensor in tensors.items() if not name.endswith(".2")}
    save_file(short, folder / "probe.safetensors")
    with pytest.raises(FileError, match="lacks task 2"):
        verify(folder, load)


def test_a_model_of_unknown_kind_is_refused(folder: Path):
    with pytest.raises(FileError, match="kind 'fake'"):
        verify(folder)
