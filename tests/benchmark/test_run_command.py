"""`firefly-cl run` from arguments to exit code, with a learner and scenario that take no time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmark_fakes import FakeLearner, ResumableFake, install, load

from firefly_cl import cli
from firefly_cl.benchmark.records import find_records, read_record
from firefly_cl.continual import STRATEGIES
from firefly_cl.errors import ConfigurationError, DataError
from firefly_cl.scenarios import SCENARIOS


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, other=FakeLearner)


def run(*arguments: str) -> int:
    command = ["run", "fake", "--strategy", "fake,other", "--epochs", "2", "--out", "out"]
    return cli.execute(cli._parse([*command, *arguments]))


def test_runs_are_kept_and_compared(capsys: pytest.CaptureFixture[str]):
    assert run("--seeds", "0,1", "--json") == 0
    printed = capsys.readouterr().out
    assert "fake, 3 tasks" in printed and "100.0 ± 0.0" in printed
    result = json.loads(printed.splitlines()[-1])
    assert [(r["strategy"], r["seed"], r["skipped"]) for r in result["runs"]] == [
        ("fake", 0, False),
        ("other", 0, False),
        ("fake", 1, False),
        ("other", 1, False),
    ]
    assert result["runs"][0]["average_accuracy"] == 1.0
    assert read_record(Path("out/fake/other-seed1")).finished


def test_what_is_finished_is_not_repeated(capsys: pytest.CaptureFixture[str]):
    assert run("--strategy", "fake") == 0
    before = Path("out/fake/fake-seed0/record.json").stat().st_mtime_ns
    capsys.readouterr()
    assert run("--json") == 0
    out, err = capsys.readouterr()
    assert "fake seed 0: already finished" in err
    assert [r["skipped"] for r in json.loads(out.splitlines()[-1])["runs"]] == [True, False]
    assert Path("out/fake/fake-seed0/record.json").stat().st_mtime_ns == before
    assert "other" in out  # the table holds both


def test_settings_are_chosen_without_a_look_at_test_images(capsys: pytest.CaptureFixture[str]):
    assert run("--strategy", "fake", "--evaluate-on", "validation") == 0
    assert "fake, 3 tasks, validation images" in capsys.readouterr().out
    record = read_record(Path("out/fake/fake-seed0"))
    assert record.configuration["evaluate_on"] == "validation"
    assert record.data["images"]["test"] == record.data["images"]["validation"]
    assert record.accuracy == record.validation_accuracy
    assert run("--strategy", "fake") == 2  # another configuration
    assert "evaluate_on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--evaluate-on", "tests"), "give test or validation"),
        (("--evaluate-on", "validation", "--validation", "0"), "needs a --validation above 0"),
    ],
)
def test_evaluation_on_nothing_is_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_another_configuration_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
):
    assert run("--strategy", "other") == 0
    before = Path("out/fake/other-seed0/record.json").read_bytes()
    capsys.readouterr()
    assert run("--epochs", "3") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "recipe.epochs 2, not 3" in error
    assert Path("out/fake/other-seed0/record.json").read_bytes() == before
    assert not Path("out/fake/fake-seed0/record.json").exists()
    assert run("--epochs", "3", "--overwrite") == 0
    assert read_record(Path("out/fake/other-seed0")).configuration["recipe"]["epochs"] == 3


def test_a_diverging_strategy_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]):
    assert run("--option", "fake.diverge=1", "--json") == 2
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("error: out/fake/fake-seed0: the loss became NaN")
    assert err.count("the loss became NaN") == 1 and "fake seed 0: failed\n" in err
    runs = json.loads(out.splitlines()[-1])["runs"]
    assert "NaN" in runs[0]["error"] and runs[1]["average_accuracy"] == 1.0


def test_a_strategy_that_cannot_be_built_is_found_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def build(setup: Any) -> Any:
        raise ConfigurationError("unknown strategy option 'x'")

    monkeypatch.setitem(STRATEGIES._objects, "other", build)
    assert run() == 2
    assert "unknown strategy option" in capsys.readouterr().err
    assert not list(Path("out").rglob("record.json"))


def test_ctrl_c_is_one_line_and_the_rest_can_be_run(capsys: pytest.CaptureFixture[str]):
    assert run("--option", "other.interrupt=1", "--json") == 130
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("error: interrupted after 1 finished run")
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["error"].startswith("interrupted")
    assert [read_record(path).finished for path in find_records([Path("out")])] == [True, False]


def test_a_stopped_run_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(STRATEGIES._objects, "other", ResumableFake)
    stopped = ("--option", "other.stop=2")
    assert run(*stopped) == 130
    capsys.readouterr()
    assert run(*stopped) == 0
    said = capsys.readouterr().err.splitlines()
    assert "[1/1] other seed 0: continues after task 2/3" in said
    assert [line for line in said if "done" in line and "task" in line] == [
        line for line in said if "task 3/3" in line
    ]
    found = read_record(Path("out/fake/other-seed0"))
    assert found.accuracy == read_record(Path("out/fake/fake-seed0")).accuracy
    assert [event["task"] for event in found.growth_events] == [0, 1, 2]
    assert found.seconds["train"] == 1.5


def test_overwrite_discards_a_stopped_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(STRATEGIES._objects, "other", ResumableFake)
    stopped = ("--strategy", "other", "--option", "other.stop=2")
    assert run(*stopped) == 130
    assert run(*stopped, "--overwrite") == 130  # it began anew, and was stopped in the same place
    assert "continues" not in capsys.readouterr().err
    Path("out/fake/other-seed0/record.json").write_text("{")
    assert run("--overwrite") == 0


def test_a_stopped_run_that_cannot_go_on_says_so(capsys: pytest.CaptureFixture[str]):
    stopped = ("--option", "other.interrupt=1")
    assert run(*stopped) == 130
    assert run(*stopped) == 130
    assert (
        "[1/1] other seed 0: starts again, without the 1/3 tasks done before "
        "(this strategy does not keep all that it would need)"
    ) in capsys.readouterr().err.splitlines()


def test_a_data_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def build(options: Any) -> Any:
        raise DataError("no images at x:\nmake some")

    monkeypatch.setitem(SCENARIOS._objects, "fake", build)
    assert run() == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: no images at x: make some"


def test_a_bug_is_one_line_unless_debugged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def build(setup: Any) -> Any:
        raise RuntimeError("shapes\ndo not fit")

    monkeypatch.setitem(STRATEGIES._objects, "fake", build)
    assert run() == 70
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("error: unexpected RuntimeError: shapes do not fit")
    assert run("--debug") == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(capsys: pytest.CaptureFixture[str]):
    Path("locked").mkdir(mode=0o500)
    assert run("--out", "locked/runs") == 2
    assert "--out" in capsys.readouterr().err


def test_an_unwritable_out_is_refused_before_data_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def build(options: Any) -> Any:
        raise AssertionError("data were read")

    monkeypatch.setitem(SCENARIOS._objects, "fake", build)
    Path("file").write_text("")
    assert run("--out", "file/runs") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--out" in error


def test_a_damaged_record_is_refused(capsys: pytest.CaptureFixture[str]):
    assert run() == 0
    Path("out/fake/fake-seed0/record.json").write_text("{")
    capsys.readouterr()
    assert run() == 2
    assert "damaged" in capsys.readouterr().err


def test_verify_and_report_of_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run("--option", "other.forget=yes") == 0
    monkeypatch.setattr("firefly_cl.continual.learner.load_logits", load)
    capsys.readouterr()
    assert cli.execute(cli._parse(["verify", "out/fake/fake-seed0", "--json"])) == 0
    out = capsys.readouterr().out
    assert "3 of 3 tasks bit-equal" in out
    assert json.loads(out.splitlines()[-1])["equal"] is True
    assert cli.execute(cli._parse(["verify", "out"])) == 1
    assert "the strategy forgot" in " ".join(capsys.readouterr().out.split())
    probe = Path("out/fake/fake-seed0/probe.safetensors")
    kept = probe.read_bytes()
    probe.unlink()
    assert cli.execute(cli._parse(["verify", "out", "--json"])) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "no probe" in err
    first, second = json.loads(out.splitlines()[-1])["runs"]
    assert "no probe" in first["error"] and second["equal"] is False
    probe.write_bytes(kept)
    asked = ["report", "out", "--html", "page/r.html", "--markdown", "t.md", "--json"]
    assert cli.execute(cli._parse(asked)) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert all(Path(path).is_file() for path in result["written"])
    assert [row["strategy"] for row in result["rows"]] == ["fake", "other"]
    assert result["rows"][1]["average_forgetting"] == 0.5


def test_report_leaves_unfinished_runs_out(capsys: pytest.CaptureFixture[str]):
    assert run("--option", "other.interrupt=1") == 130
    assert cli.execute(cli._parse(["report", "out"])) == 0
    out, err = capsys.readouterr()
    assert "left out 1 unfinished of 2" in err
    assert "fake" in out and "other" not in out
    assert cli.execute(cli._parse(["report", "out/fake/other-seed0"])) == 2
    assert "no run is finished" in capsys.readouterr().err


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from benchmark_fakes import FakeLearner, scenario
from firefly_cl import cli
from firefly_cl.continual import STRATEGIES
from firefly_cl.scenarios import SCENARIOS

class Slow(FakeLearner):
    def train(self, experience):
        super().train(experience)
        if experience.index == 1:
            print("sleeping", flush=True)
            time.sleep(60)

SCENARIOS.register("fake")(lambda options: scenario())
STRATEGIES.register("slow")(Slow)
cli.main(["run", "fake", "--strategy", "slow", "--out", {out!r}])
"""


def test_a_real_ctrl_c_ends_with_130_and_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.undo()  # back to the folder that the package is imported from
    code = SLOW.format(tests=str(Path(__file__).parent), out=str(tmp_path / "out"))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "sleeping\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert [line for line in error.splitlines() if line.startswith("error:")] == [
        f"error: interrupted after 0 finished runs, kept in {tmp_path / 'out'}: "
        "the same command does the rest"
    ]
    assert len(read_record(tmp_path / "out/fake/slow-seed0").accuracy) == 1
    assert not list(tmp_path.rglob("*.tmp"))
