"""The probe: a few fixed images of each task and the logits recorded when that task ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load, save

from firefly_cl.benchmark.folders import PROBE_NAME
from firefly_cl.errors import FileError

if TYPE_CHECKING:
    from torch import Tensor

IMAGES_PER_TASK = 32


@dataclass
class Probe:
    """Per task: images (n, C, H, W), logits (n, k) when it ended, and logits when the run last did.

    `last` tells a strategy that forgot from files that were damaged.
    """

    images: dict[int, Tensor] = field(default_factory=dict)
    ended: dict[int, Tensor] = field(default_factory=dict)
    last: dict[int, Tensor] = field(default_factory=dict)

    def content(self) -> bytes:
        """The file that `read_probe` reads."""
        parts = {"images": self.images, "ended": self.ended, "last": self.last}
        return save(
            {
                f"{name}.{task}": tensor.contiguous()
                for name, part in parts.items()
                for task, tensor in part.items()
            }
        )


def read_probe(folder: Path) -> Probe:
    """The probe in a run folder, or in that file; FileError if it is missing or damaged."""
    path = folder / PROBE_NAME if folder.is_dir() else folder
    try:
        tensors = load(path.read_bytes())
    except FileNotFoundError:
        raise FileError(f"no probe at {path}: name a run folder with a trained task") from None
    except OSError as error:
        raise FileError(f"cannot read {path} ({error.strerror}): check its permissions") from None
    except (SafetensorError, ValueError) as error:
        raise FileError(f"{path} is damaged ({error}): run the cell again") from None
    probe = Probe()
    parts = {"images": probe.images, "ended": probe.ended, "last": probe.last}
    for name, tensor in tensors.items():
        part, _, task = name.partition(".")
        if part not in parts or not task.isdigit():
            raise FileError(f"{path} is no probe (tensor {name!r}): run the cell again")
        parts[part][int(task)] = tensor
    if not probe.images.keys() == probe.ended.keys() == probe.last.keys():
        raise FileError(f"{path} is damaged (a task lacks images or logits): run the cell again")
    return probe


def spread(n: int, wanted: int = IMAGES_PER_TASK) -> list[int]:
    """`wanted` indices spread evenly over n images (all of them if there are fewer)."""
    count = min(n, wanted)
    return [i * n // count for i in range(count)]
