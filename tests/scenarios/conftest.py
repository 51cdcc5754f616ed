"""Small CIFAR-like arrays, written as npz or as torchvision's files."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]


def _split(n_classes: int, per_class: int, rng: np.random.Generator) -> tuple:
    labels = np.repeat(np.arange(n_classes, dtype=np.uint8), per_class)
    return rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8), labels


@pytest.fixture
def cifar_arrays() -> Callable[[int], Arrays]:
    """A factory of the arrays of a tiny CIFAR: 10 training and 2 test images a class."""

    def make(n_classes: int) -> Arrays:
        rng = np.random.default_rng(n_classes)
        train_images, train_labels = _split(n_classes, 10, rng)
        test_images, test_labels = _split(n_classes, 2, rng)
        arrays = {
            "train_images": train_images,
            "train_labels": train_labels,
            "test_images": test_images,
            "test_labels": test_labels,
            "class_names": np.array([f"class{i:02d}" for i in range(n_classes)]),
        }
        if n_classes == 100:
            # Names in descending order, so that sorting them is visible.
            arrays["superclass_names"] = np.array([f"super{19 - i:02d}" for i in range(20)])
            arrays["superclass_of_class"] = (np.arange(100) % 20).astype(np.uint8)
        return arrays

    return make


@pytest.fixture
def cifar100_folder(tmp_path: Path, cifar_arrays: Callable[[int], Arrays]) -> Path:
    np.savez(tmp_path / "cifar100.npz", **cifar_arrays(100))
    return tmp_path


def _rows(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


@pytest.fixture
def write_torchvision() -> Callable[[Path, Arrays], None]:
    """A writer of the same arrays in torchvision's layout, pickled as the originals are."""

    def write(root: Path, arrays: Arrays) -> None:
        def dump(path: Path, content: dict) -> None:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(pickle.dumps(content, protocol=2))

        names = arrays["class_names"].tolist()
        if len(names) == 100:
            folder = root / "cifar-100-python"
            for split in ("train", "test"):
                labels = arrays[f"{split}_labels"]
                dump(
                    folder / split,
                    {
                        "data": _rows(arrays[f"{split}_images"]),
                        "fine_labels": labels.tolist(),
                        "coarse_labels": arrays["superclass_of_class"][labels].tolist(),
                    },
                )
            coarse_names = arrays["superclass_names"].tolist()
            dump(folder / "meta", {"fine_label_names": names, "coarse_label_names": coarse_names})
            return
        folder = root / "cifar-10-batches-py"
        rows, labels = _rows(arrays["train_images"]), arrays["train_labels"]
        for i, chosen in enumerate(np.array_split(np.arange(len(labels)), 5), start=1):
            dump(
                folder / f"data_batch_{i}",
                {"data": rows[chosen], "labels": labels[chosen].tolist()},
            )
        dump(
            folder / "test_batch",
            {"data": _rows(arrays["test_images"]), "labels": arrays["test_labels"].tolist()},
        )
        dump(folder / "batches.meta", {"label_names": names})

    return write
