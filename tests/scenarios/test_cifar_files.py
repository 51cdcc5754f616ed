"""Where CIFAR is looked for, and what is said of files that are damaged or absent."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from firefly_cl.errors import DataError
from firefly_cl.scenarios import ScenarioOptions
from firefly_cl.scenarios.cifar import CIFAR10, CIFAR100, CifarLayout, read_cifar

Factory = Callable[[int], dict]


@pytest.fixture(autouse=True)
def no_data_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIREFLY_DATA", raising=False)


def complaint(layout: CifarLayout, path: Path | None) -> str:
    with pytest.raises(DataError) as raised:
        read_cifar(layout, ScenarioOptions(data_dir=path))
    message = str(raised.value)
    assert "\n" not in message and ":" in message
    return message


@pytest.mark.parametrize("layout", [CIFAR10, CIFAR100], ids=lambda layout: layout.name)
def test_torchvision_files_equal_the_npz(
    layout: CifarLayout,
    tmp_path: Path,
    cifar_arrays: Factory,
    write_torchvision: Callable[[Path, dict], None],
) -> None:
    arrays = cifar_arrays(layout.n_classes)
    np.savez_compressed(tmp_path / "file.npz", **arrays)
    write_torchvision(tmp_path, arrays)
    npz = read_cifar(layout, ScenarioOptions(data_dir=tmp_path / "file.npz"))
    for place in (tmp_path, tmp_path / layout.folder):
        folder = read_cifar(layout, ScenarioOptions(data_dir=place))
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            assert torch.equal(getattr(npz.dataset, name), getattr(folder.dataset, name))
        assert npz.dataset.classes == folder.dataset.classes
        assert npz.superclasses == folder.superclasses
        assert npz.superclass_of_class == folder.superclass_of_class
    assert (npz.superclasses is None) == (layout is CIFAR10)


def test_environment_names_the_default_folder(
    cifar100_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIREFLY_DATA", str(cifar100_folder))
    assert len(read_cifar(CIFAR100, ScenarioOptions()).dataset.classes) == 100


def test_nothing_given_or_found(tmp_path: Path) -> None:
    assert "set FIREFLY_DATA" in complaint(CIFAR100, None)
    assert "has no such data" in complaint(CIFAR100, tmp_path)
    assert "does not exist" in complaint(CIFAR10, tmp_path / "nowhere")


def test_truncated_npz(cifar100_folder: Path) -> None:
    path = cifar100_folder / "cifar100.npz"
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:length])
        assert "truncated or no npz file" in complaint(CIFAR100, path)


def test_damaged_bytes_in_an_npz(cifar100_folder: Path) -> None:
    path = cifar100_folder / "cifar100.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert "truncated or no npz file" in complaint(CIFAR100, path)


def test_files_of_another_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "objects.npz", train_images=np.array([{}], dtype=object))
    assert "single array" in complaint(CIFAR100, tmp_path / "array.npy")
    assert "truncated or no npz file" in complaint(CIFAR100, tmp_path / "text.npz")
    assert "has no train_labels" in complaint(CIFAR100, tmp_path / "objects.npz")


def _with(**changes: object) -> Callable[[dict], None]:
    def change(arrays: dict) -> None:
        for name, edit in changes.items():
            arrays[name] = edit(arrays[name])  # type: ignore[operator]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("test_labels"), "has no test_labels"),
        (_with(train_images=lambda a: a[:, :16]), r"\(1000, 16, 32, 3\), expected"),
        (_with(train_images=lambda a: a.transpose(0, 3, 1, 2)), r"expected uint8 of shape"),
        (_with(test_images=lambda a: a.astype(np.float32)), "test_images .* are float32"),
        (_with(train_labels=lambda a: a[:-1]), r"shape \(999,\), expected whole"),
        (_with(train_labels=lambda a: a.astype(float)), "are float64"),
        (_with(test_labels=lambda a: a + 1), "run from 1 to 100, expected 0 to 99"),
        (_with(test_labels=lambda a: a.astype(int) - 1), "run from -1 to 98"),
        (_with(train_labels=lambda a: np.minimum(a, 60)), "hold 61 classes, expected 100"),
        (_with(class_names=lambda a: a[:10]), "has 10 class names, expected 100"),
        (_with(class_names=lambda a: a.astype(object)), "truncated or no npz file"),
        (_with(superclass_of_class=lambda a: a * 0), "20 superclasses of 5"),
        (_with(superclass_of_class=lambda a: a - 50.5), "20 superclasses of 5"),
        (_with(superclass_of_class=lambda a: a.astype(int) - 1), "20 superclasses of 5"),
        (_with(superclass_of_class=lambda a: a[:95]), "20 superclasses of 5"),
        (_with(superclass_of_class=lambda a: a.reshape(10, 10)), "20 superclasses of 5"),
        (_with(superclass_names=lambda a: a[:3]), "20 superclasses of 5"),
    ],
)
def test_wrong_arrays(
    change: Callable, message: str, tmp_path: Path, cifar_arrays: Factory
) -> None:
    arrays = cifar_arrays(100)
    change(arrays)
    np.savez(tmp_path / "cifar100.npz", **arrays)
    assert re.search(message, complaint(CIFAR100, tmp_path))


def test_superclass_scenario_needs_superclasses(tmp_path: Path, cifar_arrays: Factory) -> None:
    from firefly_cl.scenarios import SCENARIOS

    arrays = cifar_arrays(100)
    del arrays["superclass_of_class"]
    np.savez(tmp_path / "cifar100.npz", **arrays)
    with pytest.raises(DataError, match="has no superclasses"):
        SCENARIOS.get("split-cifar100-superclass")(ScenarioOptions(data_dir=tmp_path))


def test_damaged_torchvision_files(
    tmp_path: Path, cifar_arrays: Factory, write_torchvision: Callable[[Path, dict], None]
) -> None:
    write_torchvision(tmp_path, cifar_arrays(10))
    folder = tmp_path / CIFAR10.folder
    batch = folder / "data_batch_3"
    whole = batch.read_bytes()
    batch.write_bytes(whole[: len(whole) // 2])
    assert "data_batch_3 is missing, truncated" in complaint(CIFAR10, tmp_path)
    batch.unlink()
    assert "data_batch_3 is missing" in complaint(CIFAR10, tmp_path)
    batch.write_bytes(pickle.dumps([1, 2]))
    assert "holds no dictionary" in complaint(CIFAR10, tmp_path)
    batch.write_bytes(pickle.dumps({"data": np.zeros((2, 7), np.uint8), "labels": [0, 1]}))
    assert "is not torchvision's CIFAR-10" in complaint(CIFAR10, tmp_path)


def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, cifar_arrays: Factory, write_torchvision: Callable[[Path, dict], None]
) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    write_torchvision(tmp_path, cifar_arrays(10))
    (tmp_path / CIFAR10.folder / "test_batch").write_bytes(pickle.dumps(Trap()))
    assert "refers to pathlib" in complaint(CIFAR10, tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def offline(root: str, download: bool) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(DataError, match=r"could not be downloaded .*no route to host.*check the"):
        read_cifar(CIFAR10, ScenarioOptions(data_dir=tmp_path, download=True))


def test_a_download_is_read(
    tmp_path: Path,
    cifar_arrays: Factory,
    write_torchvision: Callable[[Path, dict], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torchvision

    def fetch(root: str, download: bool) -> None:
        assert download
        write_torchvision(Path(root), cifar_arrays(10))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fetch)
    options = ScenarioOptions(data_dir=tmp_path / "new", download=True)
    assert len(read_cifar(CIFAR10, options).dataset.train_labels) == 100
