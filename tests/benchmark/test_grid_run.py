"""`firefly-cl benchmark` from arguments to exit code, with a learner that takes no time."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_fakes import InThisProcess, ResumableFake, install
from rich.console import Console

from firefly_cl import cli
from firefly_cl.benchmark import placement
from firefly_cl.benchmark.executors import Job, News
from firefly_cl.benchmark.grid import read_grid
from firefly_cl.benchmark.grid_display import GridDisplay
from firefly_cl.benchmark.ray_executor import RayCluster
from firefly_cl.benchmark.records import read_record
from firefly_cl.benchmark.standing import standings
from firefly_cl.commands import Benchmark, Tune
from firefly_cl.continual import STRATEGIES
from firefly_cl.errors import ConfigurationError, DataError
from firefly_cl.scenarios import SCENARIOS

GRID = """
seeds = [0, 1]
epochs = 2
[scenarios.fake]
[strategies.fake]
[strategies.other]
"""


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, other=ResumableFake)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command on a grid; gives the exit code and the jobs that were run."""

    def run(grid: str, *arguments: str, stop_after: int | None = None) -> tuple[int, list[Job]]:
        Path("grid.toml").write_text(grid)
        executor = InThisProcess(stop_after)
        with monkeypatch.context() as patch:
            patch.setattr(placement, "LocalProcesses", lambda *a: executor)
            code = cli.execute(cli._parse(["benchmark", "grid.toml", *arguments]))
        return code, executor.jobs

    return run


def states(out: Path = Path("runs")) -> dict[tuple[str, int], str]:
    found = standings(read_grid(Path("grid.toml")).cells(), out)
    return {(s.grid_cell.strategy, s.grid_cell.cell.seed): str(s) for s in found}


def test_the_cells_of_a_grid_are_run_and_compared(run: Any, capsys: pytest.CaptureFixture[str]):
    code, jobs = run(GRID, "--json")
    out, err = capsys.readouterr()
    assert code == 0 and len(jobs) == 4
    assert "fake, 3 tasks" in out and "100.0 ± 0.0" in out
    cells = json.loads(out.splitlines()[-1])["cells"]
    assert [(c["strategy"], c["seed"], c["state"], c["tasks"]) for c in cells] == [
        ("fake", 0, "finished", 3),
        ("other", 0, "finished", 3),
        ("fake", 1, "finished", 3),
        ("other", 1, "finished", 3),
    ]
    assert cells[0]["average_accuracy"] == 1.0 and cells[0]["folder"] == "runs/fake/fake-seed0"
    assert cells[0]["digest"] == jobs[0].cell.digest()
    assert "[4/4] other seed 1: accuracy 100.0 %" in err
    assert len({line for line in err.splitlines() if line.endswith("started")}) == 4


def test_a_part_of_a_grid_is_run_where_the_whole_would_be(
    run: Any, capsys: pytest.CaptureFixture[str]
):
    grid = GRID.replace("[strategies.other]", '[strategies.longer]\nstrategy = "fake"\nepochs = 3')
    code, jobs = run(grid, "--strategy", "longer", "--seeds", "1", "--json")
    printed = capsys.readouterr().out
    assert code == 0 and [(job.cell.seed, job.cell.recipe["epochs"]) for job in jobs] == [(1, 3)]
    (told,) = json.loads(printed.splitlines()[-1])["cells"]
    assert told["folder"] == f"runs/fake/fake-seed1-{told['digest']}"  # two are called fake-seed1
    code, jobs = run(grid, "--scenario", "fake", "--seeds", "1,0")
    assert code == 0 and len(jobs) == 3
    assert set(states().values()) == {"finished"}
    assert run(grid, "--overwrite")[1] == []


def test_what_is_left_out_is_not_touched(run: Any):
    grid = GRID + 'options = { stop = "2" }\n'
    run(grid)
    assert states()["other", 0] == "begun after task 2/3"
    record = Path("runs/fake/other-seed0/record.json")
    before = record.read_bytes()
    code, jobs = run(grid, "--strategy", "fake", "--overwrite")
    assert code == 0 and [(job.cell.strategy, job.cell.seed) for job in jobs] == [("fake", 1)]
    assert record.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--strategy", "fake,othr"), "--strategy has 'othr', which is not in the grid: did you"),
        (("--scenario", "split-digits"), "--scenario has 'split-digits', which is not in the"),
        (("--seeds", "0,2"), "--seeds has 2, and the seeds of the grid are 0, 1: add it there"),
        (("--seeds", "x"), "--seeds has 'x': give whole numbers from 0"),
        (("--strategy", ","), "--strategy is empty: give one or more names"),
    ],
)
def test_parts_that_a_grid_does_not_have(
    arguments: tuple[str, str], says: str, run: Any, capsys: pytest.CaptureFixture[str]
):
    code, jobs = run(GRID, *arguments)
    error = capsys.readouterr().err
    assert code == 2 and not jobs and not Path("runs").exists()
    assert error.startswith("error: ") and says in error and error.count("\n") == 1


def test_a_report_calls_rows_as_the_grid_does(run: Any, capsys: pytest.CaptureFixture[str]):
    grid = GRID.replace("[strategies.other]", '[strategies.longer]\nstrategy = "fake"\nepochs = 3')
    assert run(grid)[0] == 0
    capsys.readouterr()

    def rows(*options: str) -> list[str]:
        assert cli.execute(cli._parse(["report", "runs", *options, "--json"])) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        return sorted(row["strategy"] for row in told["rows"])

    assert rows("--grid", "grid.toml") == ["fake", "longer"]
    assert rows() == ["fake (epochs=2)", "fake (epochs=3)"]
    assert cli.execute(cli._parse(["report", "runs", "--grid", "none.toml"])) == 2
    assert "cannot read none.toml" in capsys.readouterr().err


def test_what_is_finished_is_not_run_again(run: Any, capsys: pytest.CaptureFixture[str]):
    assert run(GRID.replace("[0, 1]", "[0]"))[0] == 0
    record = Path("runs/fake/fake-seed0/record.json")
    before = record.stat().st_mtime_ns
    code, jobs = run(GRID)
    assert code == 0 and [job.cell.seed for job in jobs] == [1, 1]
    code, jobs = run(GRID, "--overwrite")
    assert code == 0 and not jobs
    assert record.stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("fake, 3 tasks") == 3  # the table all the same


def test_a_cell_that_fails_does_not_stop_the_grid(run: Any, capsys: pytest.CaptureFixture[str]):
    grid = GRID.replace("[strategies.other]", 'options.diverge = "1"\n[strategies.other]')
    code, jobs = run(grid, "--json")
    out, err = capsys.readouterr()
    assert code == 1 and len(jobs) == 4
    assert "error: runs/fake/fake-seed1: the loss became NaN" in err
    cells = json.loads(out.splitlines()[-1])["cells"]
    assert [cell["state"] for cell in cells] == ["failed", "finished"] * 2
    assert (
        states()["fake", 0] == "failed after task 1/3: the loss became NaN: lower --learning-rate"
    )
    code, jobs = run(grid)  # what failed is tried again
    assert code == 1 and [job.cell.strategy for job in jobs] == ["fake", "fake"]


def test_an_interrupt_says_how_to_go_on(run: Any, capsys: pytest.CaptureFixture[str]):
    assert run(GRID, "--json", stop_after=3)[0] == 130
    out, err = capsys.readouterr()
    says = "interrupted with 3 of 4 cells finished, kept in runs: the same command does the rest"
    assert err.splitlines()[-1] == f"error: {says}"
    assert json.loads(out.splitlines()[-1]) == {"error": says}
    code, jobs = run(GRID)
    assert code == 0 and len(jobs) == 1


def test_a_begun_cell_goes_on_with_its_threads(run: Any, capsys: pytest.CaptureFixture[str]):
    grid = GRID.replace("[0, 1]", "[0]") + 'options.stop = "2"\n'
    assert run(grid)[0] == 130
    assert states() == {("fake", 0): "finished", ("other", 0): "begun after task 2/3"}
    record = json.loads(Path("runs/fake/other-seed0/record.json").read_text())
    assert record["hardware"]["threads"] == 1
    code, jobs = run(grid)
    assert code == 0 and [job.threads for job in jobs] == [1]
    assert "other seed 0: continues after task 2/3" in capsys.readouterr().err


def test_a_dry_run_lists_and_leaves_everything(run: Any, capsys: pytest.CaptureFixture[str]):
    grid = GRID + 'options.stop = "1"\n'
    assert run(grid)[0] == 130
    before = sorted(Path("runs").rglob("*"))
    capsys.readouterr()
    code, jobs = run(grid, "--dry-run", "--json")
    assert code == 0 and not jobs
    assert sorted(Path("runs").rglob("*")) == before
    *table, last = capsys.readouterr().out.splitlines()
    cells = json.loads(last)["cells"]
    assert [cell["state"] for cell in cells] == ["finished", "begun", "new", "new"]
    for cell in cells:
        (line,) = [line for line in table if cell["digest"] in line]
        assert line.split()[:2] == [cell["strategy"], str(cell["seed"])]
        assert line.split()[3] == cell["state"]
    assert max(map(len, table)) <= 80
    run(grid, "--dry-run", "--out", "elsewhere")
    assert not Path("elsewhere").exists()


def test_configurations_of_one_strategy_have_folders_of_their_own(run: Any):
    two = GRID + '[strategies.small]\nstrategy = "fake"\nwidth = 0.5\n'
    assert run(GRID)[0] == 0
    first = Path("runs/fake/fake-seed0/record.json")
    before = first.stat().st_mtime_ns
    code, jobs = run(two)
    assert code == 0  # what was there stays; what joins is told apart by its digest
    assert [job.folder.name for job in jobs] == [
        f"fake-seed{job.cell.seed}-{job.cell.digest()}" for job in jobs
    ]
    assert first.stat().st_mtime_ns == before
    assert {job.cell.width for job in jobs} == {0.5}
    assert {job.cell.digest() for job in jobs} == {
        s.grid_cell.cell.digest()
        for s in standings(read_grid(Path("grid.toml")).cells(), Path("runs"))
        if s.grid_cell.strategy == "small"
    }
    alone = GRID.replace("[strategies.fake]", '[strategies.small]\nstrategy = "fake"\nwidth = 0.5')
    assert run(alone)[1] == []  # and it stays where it is when it is alone


def test_rows_are_called_as_in_the_grid(run: Any, capsys: pytest.CaptureFixture[str]):
    two = GRID + '[strategies.half-as-wide]\nstrategy = "fake"\nwidth = 0.5\n'
    assert run(two)[0] == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "100.0" in line]
    assert sorted(row[0] for row in rows) == ["fake", "half-as-wide", "other"]
    tight = two + '[scenarios.tight]\nscenario = "fake"\nbudget = 9\n'  # one table for both
    assert run(tight, "--out", "both")[0] == 0
    printed = capsys.readouterr().out
    assert printed.count("(budget=9)") == printed.count("(budget=None)") == 3


def test_a_new_grid_with_two_of_one_strategy_names_both_by_their_digests(run: Any):
    two = GRID + '[strategies.small]\nstrategy = "fake"\nwidth = 0.5\n'
    _, jobs = run(two)
    names = sorted(path.name for path in Path("runs/fake").iterdir())
    assert names == sorted(job.folder.name for job in jobs) and len(names) == 6
    assert sum(name.count("-") == 2 for name in names) == 4


def test_another_configuration_is_refused_before_anything_runs(
    run: Any, capsys: pytest.CaptureFixture[str]
):
    assert run(GRID)[0] == 0
    capsys.readouterr()
    longer = GRID.replace("epochs = 2", "epochs = 3").replace("[0, 1]", "[0, 1, 2]")
    code, jobs = run(longer)
    err = capsys.readouterr().err
    assert code == 2 and not jobs
    assert err.count("\n") == 1 and "recipe.epochs 2, not 3" in err and "--overwrite" in err
    assert states()["fake", 0].startswith("blocked: runs/fake/fake-seed0 holds")
    assert states()["fake", 2] == "new"
    code, jobs = run(longer, "--overwrite")
    assert code == 0 and len(jobs) == 6
    assert read_record(Path("runs/fake/fake-seed0")).configuration["recipe"]["epochs"] == 3


def test_a_damaged_record_is_refused_or_discarded(run: Any, capsys: pytest.CaptureFixture[str]):
    assert run(GRID)[0] == 0
    Path("runs/fake/fake-seed0/record.json").write_text("{")
    assert run(GRID) == (2, [])
    assert "damaged" in capsys.readouterr().err
    code, jobs = run(GRID, "--overwrite")
    assert code == 0 and [job.folder.name for job in jobs] == ["fake-seed0"]


def test_strategies_and_data_are_checked_before_anything_runs(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(setup: Any) -> Any:
        raise ConfigurationError("unknown strategy option 'x'")

    def missing(options: Any) -> Any:
        raise DataError("no images at x: make some")

    with monkeypatch.context() as patch:
        patch.setitem(STRATEGIES._objects, "other", refuse)
        assert run(GRID) == (2, [])
        Path("runs/fake/fake-seed0/record.json").write_text("{")
        assert run(GRID, "--overwrite") == (2, [])
    damaged = Path("runs/fake/fake-seed0/record.json")
    assert damaged.read_text() == "{"  # nothing is discarded
    damaged.unlink()
    assert capsys.readouterr().err.count("unknown strategy option") == 2
    monkeypatch.setitem(SCENARIOS._objects, "fake", missing)
    assert run(GRID) == (2, [])
    assert capsys.readouterr().err == "error: no images at x: make some\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workers", "0"], "--workers is 0: give 1 or more"),
        (["--retries", "-1"], "--retries is -1: give 0 or more"),
        (["--data-dir", "nowhere"], "--data-dir nowhere does not exist"),
        (["--out", "grid.toml/x"], "choose a writable folder with --out"),
        (["--cpus-per-cell", "2"], "--cpus-per-cell is for --ray"),
        (["--gpus-per-cell", "0.5"], "--gpus-per-cell is for --ray"),
        (["--ray", "head"], "--ray is 'head': give local, auto, or HOST:PORT"),
        (["--ray", "auto", "--workers", "0"], "--workers is 0: give 1 or more"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    arguments: list[str], says: str, run: Any, capsys: pytest.CaptureFixture[str]
):
    assert run(GRID, *arguments)[0] == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err


def test_workers_share_the_cores_and_heed_what_the_user_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("firefly_cl.benchmark.environment.physical_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    for workers, threads in ((None, 1), (3, 2), (1, 8), (16, 1)):
        assert placement.executor_of(Benchmark(Path("g"), workers=workers)).threads == threads
    assert placement.executor_of(Benchmark(Path("g"))).workers == 8
    assert placement.executor_of(Tune(Path("g")), 3).workers == 3  # no more than there are trials
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    for workers, threads in ((1, 2), (4, 2), (8, 1)):
        assert placement.executor_of(Benchmark(Path("g"), workers=workers)).threads == threads


def test_ray_gets_what_the_options_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # as if it were installed
    asked = cli._parse(
        "benchmark g --ray head:6379 --cpus-per-cell 2 --gpus-per-cell 0.25 "
        "--workers 3 --retries 1".split()
    )
    assert isinstance(asked, Benchmark)
    assert placement.executor_of(asked) == RayCluster("head:6379", 2, 0.25, 3, 1)
    plain = Benchmark(Path("g"), ray="auto")
    assert placement.executor_of(plain) == RayCluster("auto", 1, 1.0, None, 2)
    search = cli._parse("tune g --ray auto --cpus-per-cell 2".split())
    assert isinstance(search, Tune)
    assert placement.executor_of(search, 20) == RayCluster("auto", 2, 1.0, None, 2)


def test_the_live_display_fits_80_columns(tmp_path: Path):
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    folders = [tmp_path / str(k) for k in range(5)]
    titles = {f: f"split-cifar100-superclass a-long-strategy seed {f.name}" for f in folders}
    jobs = [Job(None, folder) for folder in folders]  # type: ignore[arg-type]
    display = GridDisplay(titles, 1, console)
    news = "task 12/20  train  epoch 7/100  acc 71.3 %  1234 units"
    for job in jobs[1:4]:
        display.hear(job, News("started"))
    display.hear(jobs[1], News("progress", news, 0.25))
    display.hear(jobs[2], News("failed", "the loss became NaN"))
    assert display.counts() == "1 of 5 done, 1 failed, 2 running, 1 left"
    plain = Console(file=io.StringIO(), width=80)
    plain.print(display.draw())
    assert isinstance(plain.file, io.StringIO)
    bar, *lines = plain.file.getvalue().splitlines()
    assert "45 %" in bar and display.counts() in bar  # (1 + 1 + 0.25) of 5
    assert [line[: len(titles[folders[0]])].strip() for line in lines] == [
        titles[folders[1]],
        titles[folders[3]],
    ]
    assert "25 %" in lines[0] and "loading" in lines[1]
    assert max(map(len, (bar, *lines))) <= 80
