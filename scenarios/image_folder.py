"""Any tree of train/<class>/* and test/<class>/* image files, resized and cut into tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from firefly_cl.errors import DataError
from firefly_cl.scenarios import SCENARIOS
from firefly_cl.scenarios.cut import Dataset, cut, groups_of
from firefly_cl.scenarios.options import ScenarioOptions
from firefly_cl.scenarios.scenario import Scenario

DEFAULT_SIZE = 32
DEFAULT_TASKS = 5
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@SCENARIOS.register("image-folder")
def image_folder(options: ScenarioOptions) -> Scenario:
    """Build image-folder: classes in alphabetical order, RGB, stretched to a square.

    Without n_tasks there are 5 tasks, or fewer where that would leave tasks of one class. Raises
    DataError for a missing tree, classes that differ between train and test, and damaged images.
    """
    layout = "a folder with train/<class>/ and test/<class>/ of image files"
    root = options.data_root()
    if root is None:
        raise DataError(f"image-folder has no data: give --data-dir (or FIREFLY_DATA) {layout}")
    classes = {split: _folders(root / split) for split in ("train", "test")}
    for split, found in classes.items():
        if not found:
            raise DataError(f"{root / split} has no class folders: give --data-dir {layout}")
    for here, there in (("train", "test"), ("test", "train")):
        lonely = sorted(set(classes[here]) - set(classes[there]))
        if lonely:
            raise DataError(
                f"{root} has class {lonely[0]!r} in {here} only ({len(lonely)} such): "
                f"add it to {there} or remove it"
            )
    names = classes["train"]
    groups = groups_of(
        range(len(names)), options.n_tasks or max(1, min(DEFAULT_TASKS, len(names) // 2))
    )
    size = options.image_size or DEFAULT_SIZE
    dataset = Dataset(
        *_read(root / "train", names, size), *_read(root / "test", names, size), tuple(names)
    )
    return cut("image-folder", dataset, groups, options, flip=True)


def _folders(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _read(root: Path, classes: list[str], size: int) -> tuple[Tensor, Tensor]:
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    shape = (len(files), 3, size, size)
    try:
        images = torch.empty(shape, dtype=torch.uint8)
    except RuntimeError as error:  # no memory for so many numbers
        raise DataError(
            f"{len(files)} images of {size}x{size} pixels do not fit into memory: give a smaller "
            "image_size (--image-size)"
        ) from error
    for index, (path, _) in enumerate(files):
        images[index] = _image(path, size)
    return images, torch.tensor([label for _, label in files], dtype=torch.int64)


def _image(path: Path, size: int) -> Tensor:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: replace or remove the file") from error
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
