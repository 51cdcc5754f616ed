"""Local workers: how many at once, with how many threads, and what happens where they die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from executor_fakes import job, told_by

from firefly_cl.benchmark.executors import Job, LocalProcesses, News, job_from
from firefly_cl.benchmark.failures import read_failure

ENTRY = ("executor_fakes", "main")


def local(workers: int = 1, cores: int = 1, retries: int = 2) -> LocalProcesses:
    return LocalProcesses(workers, cores, retries, ENTRY)


def run(executor: LocalProcesses, *jobs: Job) -> list[tuple[str, News]]:
    """What was heard, with the folder's name."""
    heard: list[tuple[str, News]] = []
    executor.run(jobs, lambda job, news: heard.append((job.folder.name, news)))
    return heard


def kinds(heard: list[tuple[str, News]], name: str) -> list[str]:
    return [news.kind for whose, news in heard if whose == name]


def spans(jobs: list[Job]) -> list[tuple[float, float]]:
    found = []
    for one in jobs:
        (told,) = told_by(one)
        *_, began, ended = told.split()
        found.append((float(began), float(ended)))
    return found


def most_at_once(times: list[tuple[float, float]]) -> int:
    return max(sum(a <= began < b for a, b in times) for began, _ in times)


def test_a_job_survives_the_way_to_its_worker(tmp_path: Path):
    there = job(tmp_path / "a b", 3, growth="0.5")
    assert job_from(there.as_text()) == there
    whole = Job(there.cell, there.folder, None, Path("data"), download=True, save_every=2.5)
    assert job_from(whole.as_text()) == whole


def test_workers_share_the_cores(tmp_path: Path):
    jobs = [job(tmp_path / str(k), sleep="1.5") for k in range(4)]
    heard = run(local(workers=2, cores=5), *jobs)
    assert all(kinds(heard, one.folder.name) == ["started", "progress", "ended"] for one in jobs)
    assert {told.split()[0] for one in jobs for told in told_by(one)} == {"2"}
    assert {told.split()[1] for one in jobs for told in told_by(one)} == {"2"}
    assert most_at_once(spans(jobs)) == 2


@pytest.mark.parametrize(("workers", "cores", "threads"), [(1, 8, 8), (3, 8, 2), (4, 2, 1)])
def test_every_worker_has_a_thread(workers: int, cores: int, threads: int):
    assert local(workers, cores).threads == threads


def test_a_begun_run_keeps_its_threads_and_waits_for_cores(tmp_path: Path):
    jobs = [
        job(tmp_path / "a", sleep="0.5"),
        job(tmp_path / "b", threads=4, sleep="0.5"),
        job(tmp_path / "c", threads=1, sleep="0.5"),
    ]
    run(local(workers=2, cores=3), *jobs)
    assert [told.split()[0] for one in jobs for told in told_by(one)] == ["1", "4", "1"]
    first, begun, last = spans(jobs)
    assert begun[0] >= max(first[1], last[1])  # it never fits beside another


def gpus_of(jobs: list[Job]) -> list[str]:
    return [told.split()[2] for one in jobs for told in told_by(one)]


def test_workers_are_spread_over_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("firefly_cl.benchmark.plan.check_device", lambda device: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    jobs = [job(tmp_path / str(k), device="cuda", sleep="1") for k in range(3)]
    run(local(workers=3, cores=3), *jobs)
    assert sorted(gpus_of(jobs)[:2]) == ["0", "1"] and gpus_of(jobs)[2] in "01"

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    jobs = [job(tmp_path / f"of two {k}", device="cuda", sleep="1") for k in range(2)]
    beside = job(tmp_path / "beside")
    run(local(workers=3, cores=3), *jobs, beside)
    assert sorted(gpus_of(jobs)) == ["3", "5"] and gpus_of([beside]) == ["3,5"]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    jobs = [job(tmp_path / f"of one {k}", device="cuda") for k in range(2)]
    run(local(workers=2, cores=2), *jobs)
    assert gpus_of(jobs) == ["4", "4"]


def test_a_killed_worker_is_noticed_and_its_job_started_again(tmp_path: Path):
    heard = run(local(retries=2), job(tmp_path / "a", die="2"), job(tmp_path / "b"))
    again = ["started", "progress", "lost"]
    assert kinds(heard, "a") == [*again, *again, "started", "progress", "ended"]
    assert kinds(heard, "b") == ["started", "progress", "ended"]
    assert [news.text for _, news in heard if news.kind == "lost"] == [
        f"its process was killed by SIGKILL (out of memory? try fewer --workers): "
        f"started again, {k} of 2"
        for k in (1, 2)
    ]
    assert read_failure(tmp_path / "a") is None


def test_a_job_whose_worker_always_dies_does_not_stop_the_others(tmp_path: Path):
    dies = job(tmp_path / "a", die="9")
    heard = run(local(retries=1), dies, job(tmp_path / "b"))
    assert kinds(heard, "a").count("started") == 2 and kinds(heard, "a")[-1] == "failed"
    assert kinds(heard, "b")[-1] == "ended"
    failure = read_failure(tmp_path / "a")
    assert failure is not None and "killed by SIGKILL" in failure.error
    assert failure.configuration == dies.cell.as_json()


def test_what_a_worker_said_last_is_kept(tmp_path: Path):
    heard = run(local(retries=0), job(tmp_path / "a", exit="3"))
    failed = heard[-1][1]
    assert (failed.kind, failed.text) == ("failed", "its process ended with code 3 (no such thing)")
    failure = read_failure(tmp_path / "a")
    assert failure is not None and failure.error == failed.text
    assert failure.traceback.endswith("a traceback\nno such thing\n")
    assert "printed by some library" in failure.traceback  # not among the news


def test_an_interrupt_stops_the_workers(tmp_path: Path):
    jobs = [job(tmp_path / str(k), sleep="60") for k in range(3)]
    under_way = []

    def hear(job: Job, news: News) -> None:
        if news.kind == "progress":
            under_way.append(job)
        if len(under_way) == 2:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        local(workers=2).run(jobs, hear)
    assert time.monotonic() - started < 50
    assert [told_by(one) for one in jobs] == [["stopped"], ["stopped"], []]


DRIVER = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from executor_fakes import job
from firefly_cl.benchmark.executors import LocalProcesses

def hear(job, news):
    if news.kind == "progress":
        print("under way", flush=True)

executor = LocalProcesses(1, 1, entry=("executor_fakes", "main"))
executor.run([job(Path({folder!r}), sleep="60")], hear)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_driver(how: signal.Signals, tmp_path: Path):
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1])]
    code = DRIVER.format(paths=paths, folder=str(tmp_path / "a"))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == "under way\n"
        driver.send_signal(how)
    (mark,) = (tmp_path / "a").glob("process-*")
    worker = int(mark.name.removeprefix("process-"))
    deadline = time.monotonic() + 30
    while _lives(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(worker)
    assert mark.read_text() == "stopped"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")  # one that nobody waited for is dead, too
    return not (stat.exists() and stat.read_text().rpartition(") ")[2].startswith("Z"))
