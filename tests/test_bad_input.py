"""What users get wrong, through the command line: one line that says what to do, nothing broken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from firefly_cl import cli
from firefly_cl.benchmark.records import read_record
from firefly_cl.continual.learner import load_logits
from firefly_cl.network.files import SCHEMA
from firefly_cl.scenarios import SCENARIOS, Images, Scenario, ScenarioOptions, Task

QUICK = ["--strategy", "firefly", "--tasks", "2", "--epochs", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("FIREFLY_DATA", raising=False)


Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must fail with one line of error; gives that line."""

    def run(*arguments: str, code: int = 2) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        err = capsys.readouterr().err
        assert caught.value.code == code, err
        assert "Traceback" not in err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and err.endswith(errors[0] + "\n")
        assert len(err.splitlines()) == 1 or code == 1 or "started" in err
        return errors[0]

    return run


# --- names and numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["split-digit"], "unknown scenario 'split-digit': did you mean 'split-digits'?"),
        (["--strategy", "fierfly"], "unknown strategy 'fierfly': did you mean 'firefly'?"),
        (["--backbone", "resnet91"], "unknown backbone 'resnet91': did you mean 'resnet9'?"),
        (["--epoch", "2"], "did you mean --epochs?"),
        (["--recipe", "epoch=2"], "no setting 'epoch': did you mean 'epochs'?"),
        (["--recipe", "learning_rate=fast"], "learning_rate of the recipe is 'fast'"),
        (["--epochs", "two"], "'two'"),
        (["--tasks", "0"], "--tasks is 0: give 1 or more"),
    ],
)
def test_mistyped(arguments: list[str], says: str, fails: Fails) -> None:
    assert says in fails("run", *arguments, "--out", "out")
    assert not list(Path("out").rglob("record.json"))


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("sed=1", "unknown strategy option 'sed': did you mean 'seed'?"),
        ("seed=much", "option seed is 'much'; it must be a number"),
        ("seed=-1", r"seed is -1.0: it must be in [0, 10]"),
        ("grow-at=soon", "give shares of the epochs such as 0.2,0.4"),
        ("criterion=firefli", "unknown criterion 'firefli': did you mean 'firefly'?"),
        ("cost=money", "cost 'money' is unknown: use units, parameters, flops"),
    ],
)
def test_wrong_options_are_found_before_anything_runs(option: str, says: str, fails: Fails) -> None:
    assert says in fails("run", *QUICK, "--option", f"firefly.{option}", "--out", "out")
    assert not list(Path("out").rglob("record.json"))


@pytest.mark.parametrize(
    ("strategies", "option", "says"),
    [
        (
            "firefly,naive,replay",
            "mem-size=50",
            "firefly has no option 'mem-size'; replay has it: write --option replay.mem-size=50",
        ),
        (
            "replay,individual,der",
            "mem_size=50",
            "individual has no options; replay and der have 'mem_size': "
            "write --option replay.mem_size=50 --option der.mem_size=50",
        ),
        ("individual", "head=x", "individual has no options: leave --option head out"),
        ("replay,der", "mem_siz=50", "did you mean 'mem_size'?"),
        ("firefly,naive", "quokka=1", "unknown strategy option 'quokka': choose from "),
    ],
)
def test_an_option_that_not_all_have(strategies: str, option: str, says: str, fails: Fails) -> None:
    said = fails("run", *QUICK, "--strategy", strategies, "--option", option, "--out", "out")
    assert says in said
    assert not list(Path("out").rglob("record.json"))


@pytest.mark.parametrize("minutes", ["-1", "nan", "inf"])
def test_minutes_that_cannot_be(minutes: str, fails: Fails) -> None:
    said = fails("run", *QUICK, "--save-every", minutes, "--out", "out")
    assert (
        said == f"error: --save-every is {minutes}: give minutes, or 0 to keep finished tasks alone"
    )
    assert not Path("out").exists()


def test_a_budget_that_is_too_small(fails: Fails) -> None:
    assert "over the budget of 100" in fails("run", *QUICK, "--budget", "100")


# --- data -------------------------------------------------------------------------------------


def arrays() -> dict[str, Any]:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 4)
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    return {
        "train_images": images,
        "train_labels": labels,
        "test_images": images,
        "test_labels": labels,
        "class_names": np.array([f"class{i}" for i in range(10)]),
    }


def cifar(fails: Fails, **changes: Any) -> str:
    np.savez("cifar10.npz", **{**arrays(), **changes})
    return fails("run", "split-cifar10", *QUICK, "--data-dir", ".", "--out", "out")


def test_no_data_file(fails: Fails) -> None:
    says = fails("run", "split-cifar10", *QUICK, "--data-dir", ".", "--out", "out")
    assert "CIFAR-10 was not found" in says and "--data-dir" in says and "--download" in says
    says = fails("run", "split-cifar10", *QUICK, "--data-dir", "nowhere", "--out", "out")
    assert "nowhere does not exist" in says


def test_a_truncated_data_file(fails: Fails) -> None:
    np.savez("cifar10.npz", **arrays())
    data = Path("cifar10.npz").read_bytes()
    for length in (0, 100, len(data) // 2, len(data) - 10):
        Path("cifar10.npz").write_bytes(data[:length])
        says = fails("run", "split-cifar10", *QUICK, "--data-dir", ".", "--out", "out")
        assert "cifar10.npz is truncated" in says and "make it again" in says


def test_a_file_that_is_no_npz(fails: Fails) -> None:
    Path("text.npz").write_text("root:x:0:0\n")
    np.save("one.npy", np.zeros(3))
    for name in ("text.npz", "one.npy"):
        says = fails("run", "split-cifar10", *QUICK, "--data-dir", name, "--out", "out")
        assert f"{name} is truncated or no npz file (" in says and "copy or make it again" in says
        assert "pickle" not in says
    assert "pickle" not in cifar(fails, train_images=np.array([{}, {}]))


def test_wrong_arrays(fails: Fails) -> None:
    good = arrays()
    assert "expected uint8 of shape (n, 32, 32, 3)" in cifar(
        fails, train_images=good["train_images"].transpose(0, 3, 1, 2)
    )
    assert "expected uint8" in cifar(fails, test_images=good["test_images"] / 255)
    assert "expected whole numbers of shape (40,)" in cifar(
        fails, train_labels=good["train_labels"][:-1]
    )
    assert "run from 0 to 10, expected 0 to 9" in cifar(
        fails, train_labels=good["train_labels"] + (good["train_labels"] == 9)
    )
    assert "hold 9 classes, expected 10" in cifar(fails, test_labels=good["test_labels"] % 9)
    assert not list(Path("out").rglob("record.json"))


def test_a_task_of_a_single_class(fails: Fails) -> None:
    assert "fewer than two classes: ask for 5 tasks or fewer" in fails(
        "run", "split-digits", *QUICK, "--split-into", "10"
    )


def test_tasks_that_are_not_equal(fails: Fails) -> None:
    said = fails("run", "split-cifar10", *QUICK, "--split-into", "3")
    assert "choose n_tasks (--split-into) from 1, 2, 5" in said


def test_images_that_are_not_resized(fails: Fails) -> None:
    said = fails("run", "split-digits", *QUICK, "--image-size", "16")
    assert "split-digits has images of 8x8 pixels" in said and "(--image-size) out" in said


def test_a_class_without_images(fails: Fails) -> None:
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        Path("data", folder).mkdir(parents=True)
    says = fails("run", "image-folder", "--data-dir", "data", "--out", "out")
    assert "class 'a' of image-folder has no training images" in says
    assert not list(Path("out").rglob("record.json"))


def scenario_of(*splits: tuple[torch.Tensor, torch.Tensor]) -> Callable[..., Scenario]:
    """A scenario as somebody else may register one: float images, a task for every split."""

    def build(options: ScenarioOptions) -> Scenario:
        tasks = tuple(
            Task(i, str(i), ("a", "b"), *(Images(x, y, i) for _ in range(3)))
            for i, (x, y) in enumerate(splits)
        )
        return Scenario("own", tasks, (0.5,), (0.25,), (1, 8, 8), flip=False)

    return build


def good_split() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return images, torch.arange(12) % 2


def own(monkeypatch: pytest.MonkeyPatch, *splits: Any) -> list[str]:
    monkeypatch.setitem(SCENARIOS._objects, "own", scenario_of(*splits))
    return ["run", "own", "--strategy", "firefly", "--epochs", "1", "--backbone", "mlp"]


@pytest.mark.parametrize("strategy", ["firefly", "naive", "ewc", "replay"])
def test_a_task_that_cannot_be_learnt(
    strategy: str, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    images, labels = good_split()
    damaged = images.clone()
    damaged[3, 0, 2, 2] = torch.nan
    for split, says in (
        ((damaged, labels), "NaN or infinite pixels"),
        ((images, labels * 0), "a single class"),
        ((images[:0], labels[:0]), "no images"),
    ):
        shutil.rmtree("out", ignore_errors=True)
        command = own(monkeypatch, good_split(), split)
        said = fails(*command, "--strategy", strategy, "--out", "out")
        assert says in said or "empty" in said
        folder = Path("out/own", f"{strategy}-seed0")
        if (folder / "record.json").exists():  # what the first task left is whole
            record = read_record(folder)
            assert not record.finished
            if record.accuracy:
                assert torch.isfinite(load_logits(folder / "model")(0, images)).all()


def test_a_loss_that_is_no_number(fails: Fails) -> None:
    said = fails("run", *QUICK, "--learning-rate", "1e12", "--epochs", "3", "--out", "out")
    assert "lower the learning rate (now at most 1e+12)" in said
    record = read_record(Path("out/split-digits/firefly-seed0"))
    assert not record.finished and record.accuracy == []


# --- files ------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written(fails: Fails) -> None:
    Path("file").write_text("")
    says = fails("run", *QUICK, "--out", "file/below")
    assert "cannot make file/below" in says and "choose a writable folder with --out" in says
    assert Path("file").read_text() == ""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", *QUICK, "--out", str(out)])
    assert caught.value.code == 0
    return out / "split-digits" / "firefly-seed0"


def damaged(file: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        content = (run / file).read_bytes()
        (run / file).write_bytes(content[: len(content) // 2])

    return damage


def without(file: str) -> Callable[[Path], None]:
    return lambda run: (run / file).unlink()


def newer_json(file: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        content = json.loads((run / file).read_text())
        (run / file).write_text(json.dumps({**content, "schema": 99}))

    return change


def newer_weights(run: Path) -> None:
    path = run / "model" / "model.safetensors"
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["firefly_cl"])
        state = {key: file.get_tensor(key) for key in file.keys()}
    save_file(state, path, {"firefly_cl": json.dumps({**header, "schema": 99})})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damaged("model/model.safetensors"), "model.safetensors is damaged"),
        (without("model/model.safetensors"), "model.safetensors: restore or rerun"),
        (newer_weights, f"has schema 99, this version reads up to {SCHEMA}: update firefly_cl"),
        (damaged("model/model.json"), "model.json is damaged"),
        (
            without("model/model.json"),
            "model.json is missing: train again or restore the run folder",
        ),
        (newer_json("model/model.json"), "has schema 99, this version reads up to 1"),
        (damaged("probe.safetensors"), "probe.safetensors is damaged"),
        (damaged("record.json"), "record.json is damaged"),
        (newer_json("record.json"), "has schema 99, newer than 1"),
    ],
)
def test_verify_of_a_damaged_run(
    damage: Callable[[Path], None], says: str, finished: Path, fails: Fails
) -> None:
    shutil.copytree(finished, "run")
    damage(Path("run"))
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert says in fails("verify", "run")
    assert before == {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}


def test_verify_of_changed_weights(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, "run")
    path = Path("run/model/model.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        state = {key: file.get_tensor(key) for key in file.keys()}
    name = next(key for key in state if key.endswith(".1.from_own"))
    state[name] += 1e-3
    save_file(state, path, metadata)
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", "run"])
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert err == "" and "1 of 2 tasks changed" in out


def test_nothing_to_verify(fails: Fails) -> None:
    assert "nothing does not exist" in fails("verify", "nothing")
    assert "no record.json" in fails("verify", ".")


def test_a_traceback_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["verify", "nothing", "--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_in_the_middle() -> None:
    command = [sys.executable, "-m", "firefly_cl.cli", "run", "--strategy", "naive,firefly"]
    with subprocess.Popen(
        [*command, "--epochs", "3", "--out", "out", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "firefly seed 0: task 2/5" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert said[-1].startswith("error: interrupted after 1 finished run")
    assert sum(line.startswith("error: ") for line in said) == 1
    assert not any("Traceback" in line for line in said)
    folder = Path("out/split-digits/firefly-seed0")
    record = read_record(folder)
    tasks = len(record.accuracy)
    assert 2 <= tasks < 5 and not record.finished
    logits = load_logits(folder / "model")
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert all(logits(task, images).shape == (2, 2) for task in range(tasks))
    assert read_record(Path("out/split-digits/naive-seed0")).finished
    hidden = {path.name for path in Path("out").rglob(".*")}
    assert hidden == {".lock"}  # no temporary file is left
