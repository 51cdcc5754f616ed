"""The Ray executor on two machines of a Ray cluster, both played by this one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from executor_fakes import job, told_by
from same_run import assert_same_run

from firefly_cl.benchmark import ray_executor
from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.executors import Job, News
from firefly_cl.benchmark.failures import read_failure
from firefly_cl.benchmark.lock import HOLDER_NAME, held
from firefly_cl.benchmark.ray_executor import RayCluster
from firefly_cl.benchmark.worker import perform
from firefly_cl.errors import ClusterError, ConfigurationError

HERE = Path(__file__).parent
ACT = ("executor_fakes", "act")
ENDS = ("lost", "ended", "failed")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Two machines of one CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        paths = (str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", ""))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # other tests would leave them no time
        machine = {"num_cpus": 1, "object_store_memory": 80_000_000}
        cluster = Cluster(True, head_node_args={**machine, "include_dashboard": False})
        cluster.add_node(**machine)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def on_ray(ray_cluster: Any) -> Callable[..., RayCluster]:
    """An executor on the cluster, with fake workers unless told otherwise."""

    def on_ray(**options: Any) -> RayCluster:
        return RayCluster(ray_cluster.address, **{"entry": ACT, **options})

    return on_ray


def run(executor: RayCluster, *jobs: Job) -> list[tuple[str, News]]:
    """What was heard, with the folder's name."""
    heard: list[tuple[str, News]] = []
    executor.run(jobs, lambda job, news: heard.append((job.folder.name, news)))
    return heard


def kinds(heard: list[tuple[str, News]], name: str) -> list[str]:
    return [news.kind for whose, news in heard if whose == name]


def lives(folder: Path) -> bool:
    """Whether the process that a fake job in `folder` began with is there."""
    (mark,) = folder.glob("process-*")
    stat = Path(f"/proc/{mark.name.removeprefix('process-')}/stat")
    return stat.exists() and not stat.read_text().rpartition(") ")[2].startswith("Z")


def dies(folder: Path, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while lives(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not lives(folder)


def test_jobs_are_told_of_and_those_that_die_started_again(
    on_ray: Callable[..., RayCluster], tmp_path: Path
):
    exits = job(tmp_path / "exits", exit="3")
    jobs = [job(tmp_path / "a", die="1"), exits, job(tmp_path / "b"), job(tmp_path / "c")]
    heard = run(on_ray(retries=1), *jobs)
    # what a process tells in its last moment may be lost with it
    told = kinds(heard, "a")
    assert told.count("lost") == 1
    assert told[told.index("lost") + 1 :] == ["started", "progress", "ended"]
    for name in "bc":
        assert kinds(heard, name) == ["started", "progress", "ended"]
        (told,) = told_by(jobs["abc".index(name) + 1])
        assert told.split()[:2] == ["1", "1"]  # its threads
    host = socket.gethostname()
    assert {news.text for _, news in heard if news.kind == "started"} == {f"started on {host}"}
    (lost,) = [news.text for name, news in heard if news.kind == "lost" and name == "a"]
    died = rf"its process( on {host})? died \(killed, or out of memory\?\)"
    assert re.fullmatch(rf"{died}: started again, 1 of 1", lost)
    assert len(told_by(exits)) == 2
    assert [kind for kind in kinds(heard, "exits") if kind in ENDS] == ["lost", "failed"]
    failure = read_failure(exits.folder)
    assert failure is not None and re.fullmatch(died, failure.error)
    assert failure.configuration == exits.cell.as_json() and "died" in failure.traceback
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "exits"]


def test_a_killed_worker_changes_no_bit(on_ray: Callable[..., RayCluster], tmp_path: Path):
    recipe = {"epochs": 1, "augmentation": {"crop_padding": 1, "flip": False}}
    replay = Cell(
        "split-digits", "replay", 0, "mlp", 0.25, tasks=3, recipe=recipe, options={"mem_size": "40"}
    )
    naive = replace(replay, strategy="naive", options={})
    jobs = [Job(cell, tmp_path / "ray" / cell.strategy) for cell in (replay, naive)]
    for one in jobs:
        one.folder.mkdir(parents=True)
    heard: list[tuple[str, News]] = []

    def hear(job: Job, news: News) -> None:
        name = job.folder.name
        heard.append((name, news))
        if news.kind == "task" and kinds(heard, "replay").count("task") == 1 and name == "replay":
            process = json.loads((job.folder / HOLDER_NAME).read_text())["process"]
            os.kill(process, signal.SIGKILL)

    on_ray(entry=("firefly_cl.benchmark.worker", "perform")).run(jobs, hear)
    assert kinds(heard, "replay").count("lost") == 1
    assert kinds(heard, "replay")[-1] == kinds(heard, "naive")[-1] == "ended"
    told = [news.kind for name, news in heard if name == "replay" and news.kind != "progress"]
    assert told[-2:] == ["task", "ended"]
    assert "resumed" in told
    for one in jobs:
        whole = replace(one, folder=tmp_path / "here" / one.folder.name, threads=1)
        whole.folder.mkdir(parents=True)
        perform(whole, lambda news: None)
        assert_same_run(whole.folder, one.folder)


DRIVER = """
import sys
from pathlib import Path
from executor_fakes import job
from firefly_cl.benchmark.lock import HOLDER_NAME, held
from firefly_cl.benchmark.ray_executor import RayCluster

def hear(job, news):
    if news.kind == "progress":
        print("under way", flush=True)

RayCluster({address!r}, entry={act!r}).run([job(Path({folder!r}), sleep="60")], hear)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
@pytest.mark.parametrize("who", ["the command", "Ray's driver"])
def test_no_worker_outlives_a_killed_driver(who: str, ray_cluster: Any, tmp_path: Path):
    folder = tmp_path / "a"
    code = DRIVER.format(address=ray_cluster.address, act=ACT, folder=str(folder))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None and command.stdout.readline() == "under way\n"
        victim = command.pid
        if who == "Ray's driver":
            children = Path(f"/proc/{victim}/task/{victim}/children").read_text()
            victim = int(children.split()[0])
        os.kill(victim, signal.SIGKILL)
        _, said = command.communicate(timeout=30)
    assert dies(folder)
    if who == "Ray's driver":
        assert "Ray was lost (its process was killed by SIGKILL)" in said.splitlines()[-1]
    again = RayCluster(ray_cluster.address, entry=ACT)
    assert kinds(run(again, job(folder)), "a") == ["started", "progress", "ended"]


def test_a_cell_waits_for_the_process_that_still_runs_it(
    on_ray: Callable[..., RayCluster], tmp_path: Path
):
    one = job(tmp_path / "a")
    heard: list[News] = []
    with ExitStack() as stack:
        stack.enter_context(held(one.folder))

        def hear(job: Job, news: News) -> None:
            heard.append(news)
            if "waits" in news.text:
                assert not told_by(one)
                stack.close()

        on_ray().run([one], hear)
    waits = f"waits: {one.folder} is in use by process {os.getpid()} on {socket.gethostname()}"
    assert heard[1].text.startswith(waits) and heard[-1].kind == "ended"


def test_an_interrupt_stops_what_runs(on_ray: Callable[..., RayCluster], tmp_path: Path):
    jobs = [job(tmp_path / str(k), sleep="60") for k in range(3)]
    under_way: list[Job] = []

    def hear(job: Job, news: News) -> None:
        if news.kind == "progress":
            under_way.append(job)
        if len(under_way) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_ray().run(jobs, hear)
    assert all(dies(one.folder) for one in under_way)
    assert len(under_way) == 2 and len(list(tmp_path.glob("*/process-*"))) == 2


def test_a_machine_that_does_not_see_the_folders_ends_the_grid(
    on_ray: Callable[..., RayCluster], tmp_path: Path
):
    def hear(job: Job, news: News) -> None:
        for mark in tmp_path.glob(".ray-*"):  # as if the next were on a machine without it
            mark.unlink()

    jobs = [job(tmp_path / "a"), job(tmp_path / "b")]
    with pytest.raises(ClusterError, match=f"does not see the {tmp_path} of this machine"):
        on_ray(workers=1).run(jobs, hear)
    assert told_by(jobs[0]) and not told_by(jobs[1])


def test_more_than_any_machine_has(on_ray: Callable[..., RayCluster], tmp_path: Path):
    plain = job(tmp_path / "a")
    gpu = replace(plain, cell=replace(plain.cell, device="cuda"))
    for executor, one, needs in (
        (
            on_ray(cpus=2),
            plain,
            "a cell needs 2 CPUs, and the largest machine of this Ray has 1 C",
        ),
        (on_ray(gpus=0.25), gpu, "a cell needs 1 CPU and 0.25 GPUs"),
        (on_ray(), replace(plain, threads=2), "goes on with the threads it began with, needs 2"),
    ):
        with pytest.raises(ClusterError, match=needs):
            run(executor, one)
    assert not told_by(plain)


def test_a_job_whose_machine_dies_goes_to_another(
    ray_cluster: Any, on_ray: Callable[..., RayCluster], tmp_path: Path
):
    large = {"num_cpus": 2, "object_store_memory": 80_000_000}
    machines = [ray_cluster.add_node(**large)]
    heard: list[News] = []

    def hear(job: Job, news: News) -> None:
        heard.append(news)
        if news.kind == "progress" and len(machines) == 1:
            ray_cluster.remove_node(machines[0], allow_graceful=False)
            machines.append(ray_cluster.add_node(**large))

    one = job(tmp_path / "a", threads=2, sleep="4")
    try:
        on_ray().run([one], hear)
    finally:
        ray_cluster.remove_node(machines[-1])
    assert [news.kind for news in heard].count("lost") == 1 and heard[-1].kind == "ended"
    first, last = told_by(one)
    assert first == "began" and last.split()[0] == "2"  # it keeps its threads


def test_an_address_where_no_ray_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(ClusterError, match=f"no Ray answers at 127.0.0.1:{port}"):
        run(RayCluster(f"127.0.0.1:{port}"), job(tmp_path / "a"))
    assert time.monotonic() - began < 20
    monkeypatch.setattr(ray_executor, "PATIENCE", 6.0)
    with socket.create_server(("127.0.0.1", 0)) as other:  # it takes calls, and is silent
        with pytest.raises(ClusterError, match="no Ray answers at"):
            run(RayCluster(f"127.0.0.1:{other.getsockname()[1]}"), job(tmp_path / "a"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"address": "ray://head:10001"}, "with --ray auto"),
        ({"address": "head"}, "--ray is 'head': give local, auto, or HOST:PORT"),
        ({"cpus": 0}, "--cpus-per-cell is 0: give 1 or more"),
        ({"gpus": 0.0}, "--gpus-per-cell is 0: give a share"),
        ({"gpus": 1.5}, "--gpus-per-cell is 1.5"),
        ({"gpus": float("nan")}, "--gpus-per-cell is nan"),
    ],
)
def test_what_cannot_be_meant(options: dict[str, Any], says: str):
    with pytest.raises(ConfigurationError) as error:
        RayCluster(**{"address": "local", **options})
    assert says in str(error.value)


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"pip install ray$"):
        RayCluster("local")
