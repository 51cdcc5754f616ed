"""CIFAR-10 and CIFAR-100 from an npz file, from torchvision's files, or downloaded."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firefly_cl.errors import DataError
from firefly_cl.scenarios.cut import Dataset
from firefly_cl.scenarios.options import ScenarioOptions


@dataclass(frozen=True)
class CifarLayout:
    """The file names and keys of one of the two datasets (Krizhevsky 2009)."""

    name: str
    n_classes: int
    npz: str
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    meta_file: str
    labels_key: str
    names_key: str
    torchvision_class: str


CIFAR10 = CifarLayout(
    "CIFAR-10",
    10,
    "cifar10.npz",
    "cifar-10-batches-py",
    tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test_batch",
    "batches.meta",
    "labels",
    "label_names",
    "CIFAR10",
)
CIFAR100 = CifarLayout(
    "CIFAR-100",
    100,
    "cifar100.npz",
    "cifar-100-python",
    ("train",),
    "test",
    "meta",
    "fine_labels",
    "fine_label_names",
    "CIFAR100",
)


@dataclass(frozen=True)
class Cifar:
    """A CIFAR dataset with, for CIFAR-100, its superclasses."""

    dataset: Dataset
    superclasses: tuple[str, ...] | None = None
    superclass_of_class: tuple[int, ...] | None = None


def read_cifar(layout: CifarLayout, options: ScenarioOptions) -> Cifar:
    """Read a CIFAR dataset from options.data_dir, else from the folder FIREFLY_DATA names.

    Looked for in this order: the path itself as an npz file; the layout's npz in it; torchvision's
    folder in it, or the path being that folder; a download, if allowed. Raises DataError if nothing
    is found or what is found is damaged.
    """
    root = options.data_root()
    get_it = (
        f"give --data-dir (or set FIREFLY_DATA) a folder with {layout.npz} or {layout.folder}/, "
        "or allow --download"
    )
    if root is None:
        if not options.download:
            raise DataError(f"{layout.name} was not found, no data folder is given: {get_it}")
        root = Path.home() / ".cache" / "firefly_cl"
    if root.is_file():
        return _read_npz(layout, root)
    if (root / layout.npz).is_file():
        return _read_npz(layout, root / layout.npz)
    for folder in (root / layout.folder, root):
        if (folder / layout.meta_file).is_file() and (folder / layout.test_file).is_file():
            return _read_folder(layout, folder)
    if options.download:
        return _read_folder(layout, _download(layout, root))
    state = "has no such data" if root.is_dir() else "does not exist"
    raise DataError(f"{layout.name} was not found, {root} {state}: {get_it}")


def _read_npz(layout: CifarLayout, path: Path) -> Cifar:
    keys = ["train_images", "train_labels", "test_images", "test_labels", "class_names"]
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with loaded as file:
            optional = [k for k in ("superclass_names", "superclass_of_class") if k in file.files]
            missing = [key for key in keys if key not in file.files]
            if missing:
                raise DataError(
                    f"{path} has no {', '.join(missing)}, expected the keys {', '.join(keys)}: "
                    f"make the {layout.name} file anew"
                )
            arrays = {key: file[key] for key in keys + optional}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        why = _one_line(error)
        if "allow_pickle" in str(error):  # numpy says how to read it unsafely
            why = "it holds Python objects" if zipfile.is_zipfile(path) else "it is no archive"
        raise DataError(
            f"{path} is truncated or no npz file ({why}): copy or make it again"
        ) from error
    return _checked(layout, path, arrays)


def _read_folder(layout: CifarLayout, folder: Path) -> Cifar:
    train = [_unpickle(folder / file) for file in layout.train_files]
    test = _unpickle(folder / layout.test_file)
    meta = _unpickle(folder / layout.meta_file)
    try:
        arrays = {
            "train_images": np.concatenate([_hwc(batch["data"]) for batch in train]),
            "train_labels": np.concatenate([np.asarray(b[layout.labels_key]) for b in train]),
            "test_images": _hwc(test["data"]),
            "test_labels": np.asarray(test[layout.labels_key]),
            "class_names": np.asarray(meta[layout.names_key]),
        }
        if "coarse_labels" in test and "coarse_label_names" in meta:
            superclass_of_class = np.zeros(layout.n_classes, dtype=np.int64)
            coarse = np.asarray(test["coarse_labels"])
            superclass_of_class[arrays["test_labels"]] = coarse
            if (superclass_of_class[arrays["test_labels"]] != coarse).any():
                raise ValueError("a class has images of two superclasses")
            arrays["superclass_of_class"] = superclass_of_class
            arrays["superclass_names"] = np.asarray(meta["coarse_label_names"])
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise DataError(
            f"{folder} is not torchvision's {layout.name} ({_one_line(error)}): remove the folder "
            "and unpack or download it again"
        ) from error
    return _checked(layout, folder, arrays)


def _hwc(data: Any) -> np.ndarray[Any, Any]:
    images: np.ndarray[Any, Any] = np.asarray(data).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, strings and arrays; anything else in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            # numpy moved this function between versions; an array always knows its own.
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _unpickle(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(
            f"{path} is missing, truncated or no CIFAR file ({_one_line(error)}): "
            "unpack or download it again"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no dictionary: unpack or download it again")
    return content


def _download(layout: CifarLayout, root: Path) -> Path:
    import torchvision

    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, layout.torchvision_class)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{layout.name} could not be downloaded to {root} ({_one_line(error)}): check the "
            "connection and that the folder is writable, or give --data-dir a folder that has it"
        ) from error
    return root / layout.folder


def _checked(layout: CifarLayout, path: Path, arrays: Mapping[str, Any]) -> Cifar:
    """The arrays as a dataset; raises DataError for shapes, types or labels unlike CIFAR's."""
    again = f"make or download the {layout.name} file again"
    names = arrays["class_names"]
    if names.ndim != 1 or len(names) != layout.n_classes:
        raise DataError(
            f"{path} has {names.size} class names, expected {layout.n_classes}: "
            f"give a {layout.name} file"
        )
    tensors: dict[str, Tensor] = {}
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
            raise DataError(
                f"{split}_images of {path} are {images.dtype} of shape {images.shape}, expected "
                f"uint8 of shape (n, 32, 32, 3): {again}"
            )
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise DataError(
                f"{split}_labels of {path} are {labels.dtype} of shape {labels.shape}, expected "
                f"whole numbers of shape ({len(images)},): {again}"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < layout.n_classes:
            raise DataError(
                f"{split}_labels of {path} run from {labels.min()} to {labels.max()}, expected 0 "
                f"to {layout.n_classes - 1}: {again}"
            )
        found = len(np.unique(labels))
        if found < layout.n_classes:
            raise DataError(
                f"{split}_labels of {path} hold {found} classes, expected {layout.n_classes}: "
                f"{again}"
            )
        tensors[f"{split}_images"] = torch.from_numpy(
            np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        )
        tensors[f"{split}_labels"] = torch.from_numpy(labels.astype(np.int64))
    dataset = Dataset(**tensors, classes=tuple(str(name) for name in names))
    coarse, coarse_names = arrays.get("superclass_of_class"), arrays.get("superclass_names")
    if coarse is None or coarse_names is None:
        return Cifar(dataset)
    five_each = [superclass for superclass in range(20) for _ in range(5)]
    if coarse.ndim != 1 or coarse_names.shape != (20,) or sorted(coarse.tolist()) != five_each:
        raise DataError(
            f"superclass_of_class of {path} does not give 20 superclasses of 5 classes: {again}"
        )
    return Cifar(
        dataset,
        tuple(str(name) for name in coarse_names),
        tuple(int(superclass) for superclass in coarse),
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
