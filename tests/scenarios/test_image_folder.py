"""image-folder over small trees of real image files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from firefly_cl import cli
from firefly_cl.benchmark.records import read_record
from firefly_cl.errors import DataError
from firefly_cl.scenarios import SCENARIOS, Scenario, ScenarioOptions

COLOURS = {"ant": (255, 0, 0), "bee": (0, 255, 0), "cat": (0, 0, 255), "dog": (9, 99, 199)}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four classes of one colour each, with images of several sizes, modes and counts."""
    for split, count in (("train", 4), ("test", 2)):
        for k, (name, colour) in enumerate(COLOURS.items()):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count + k):
                image = Image.new("RGB", (10 + i, 20 - i), colour)
                image.save(folder / f"{i}.{'png' if i % 2 else 'bmp'}")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path


def build(root: Path | None, **options: object) -> Scenario:
    return SCENARIOS.get("image-folder")(ScenarioOptions(data_dir=root, **options))  # type: ignore[arg-type]


def test_tasks_of_a_tree(tree: Path) -> None:
    scenario = build(tree, image_size=16)
    assert [task.classes for task in scenario.tasks] == [("ant", "bee"), ("cat", "dog")]
    assert scenario.image_shape == (3, 16, 16)
    assert [len(t.train) + len(t.validation) for t in scenario.tasks] == [4 + 5, 6 + 7]
    assert [len(t.test) for t in scenario.tasks] == [2 + 3, 4 + 5]
    for task in scenario.tasks:
        for split in (task.train, task.validation, task.test):
            assert split.images.dtype == torch.uint8
            for image, label in zip(split.images, split.labels, strict=True):
                colour = COLOURS[task.classes[int(label)]]
                assert image[:, 7, 7].tolist() == list(colour)


def test_number_of_tasks(tree: Path) -> None:
    assert len(build(tree, n_tasks=1).tasks[0].classes) == 4
    assert build(tree).image_shape == (3, 32, 32)


def test_images_that_no_memory_holds(tree: Path) -> None:
    with pytest.raises(DataError, match=r"22 images of 99999999x99999999 .* \(--image-size\)"):
        build(tree, image_size=99_999_999)


def test_the_command_line_says_how_large_images_become(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["image-folder", "--data-dir", str(tree), "--strategy", "naive", "--backbone", "mlp"]
    numbers = {}
    for size in ([], ["--image-size", "8"]):
        more = ["--epochs", "1", "--threads", "1", "--out", f"out{len(size)}", *size]
        assert cli.execute(cli._parse(["run", *common, *more])) == 0
        record = read_record(tmp_path / f"out{len(size)}" / "image-folder" / "naive-seed0")
        assert record.configuration.get("image_size") == (8 if size else None)
        numbers[len(size)] = record.parameters
    assert numbers[2] < numbers[0]


def test_grey_images_become_rgb(tree: Path) -> None:
    Image.fromarray(np.full((5, 5), 77, np.uint8)).save(tree / "test" / "ant" / "0.bmp")
    first = build(tree).tasks[0].test.images[0]
    assert first.shape == (3, 32, 32) and first.unique().tolist() == [77]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "test"), "test has no class folders: give --data-dir"),
        (lambda root: shutil.rmtree(root / "test" / "bee"), "class 'bee' in train only"),
        (lambda root: (root / "test" / "eel").mkdir(), "class 'eel' in test only"),
        (lambda root: (root / "train/cat/0.bmp").write_bytes(b"BM"), "cannot be read as an image"),
        (
            lambda root: [p.unlink() for p in (root / "test" / "dog").iterdir()],
            "class 'dog' of image-folder has no test images",
        ),
    ],
)
def test_damaged_trees(damage: object, message: str, tree: Path) -> None:
    damage(tree)  # type: ignore[operator]
    with pytest.raises(DataError, match=message) as raised:
        build(tree)
    assert "\n" not in str(raised.value)


def test_truncated_image(tree: Path) -> None:
    path = tree / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        build(tree)


def test_too_few_classes(tree: Path) -> None:
    with pytest.raises(DataError, match="ask for 2 tasks or fewer"):
        build(tree, n_tasks=3)
    for name in ("bee", "cat", "dog"):
        for split in ("train", "test"):
            shutil.rmtree(tree / split / name)
    with pytest.raises(DataError, match=r"too few classes \(1\): .* add some"):
        build(tree)


def test_no_folder_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FIREFLY_DATA", raising=False)
    with pytest.raises(DataError, match="image-folder has no data: give --data-dir"):
        build(None)
    with pytest.raises(DataError, match="train has no class folders"):
        build(tmp_path / "nowhere")
