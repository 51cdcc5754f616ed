"""Snapshots: how far the training of a task has come where an epoch has ended, in one file.

No pickle is read: tensors are safetensors, everything else is JSON in its header.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from firefly_cl.errors import ConfigurationError, FileError, Unreadable

SCHEMA = 1

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors, and values that JSON can hold, by name."""


@dataclass(frozen=True)
class Snapshot:
    """What the training of a task needs to go on after `epoch` of its epochs.

    `record`: SHA-256 of the record of the tasks before, to which alone it belongs.
    """

    task: int
    epoch: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]
    record: str = ""

    def to_bytes(self) -> bytes:
        """What `read_snapshot` reads; strides are kept, since sums depend on them."""
        tensors = {name: values.detach().cpu() for name, values in self.tensors.items()}
        plain = {name: _like(values.shape, None, values) for name, values in tensors.items()}
        told = {
            "schema": SCHEMA,
            "task": self.task,
            "epoch": self.epoch,
            "record": self.record,
            "values": dict(self.values),
            "strides": {
                name: list(values.stride())
                for name, values in tensors.items()
                if values.stride() != plain[name].stride()
            },
        }
        text = json.dumps(told, default=lambda value: value.tolist())
        return save(plain, {"firefly_cl": text, "sha256": _digest(text, plain)})


def read_snapshot(path: Path) -> Snapshot:
    """The snapshot in a file; raises FileError if it is missing, damaged or of a newer schema."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            plain = {name: file.get_tensor(name) for name in file.keys()}
        text = header["firefly_cl"]
        told = json.loads(text)
        if told["schema"] > SCHEMA:
            raise FileError(
                f"{path} has schema {told['schema']}, this version reads up to {SCHEMA}: update "
                "firefly_cl"
            )
        if _digest(text, plain) != header["sha256"]:
            raise ValueError("checksum")
        strides = told["strides"]
        tensors = {name: _like(v.shape, strides.get(name), v) for name, v in plain.items()}
        return Snapshot(told["task"], told["epoch"], tensors, told["values"], told["record"])
    except FileNotFoundError:
        raise FileError(f"there is no snapshot {path}") from None
    except OSError as error:
        raise Unreadable.of(path, error) from error
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        raise FileError(f"{path} is damaged") from None


def _like(shape: torch.Size, strides: list[int] | None, values: Tensor) -> Tensor:
    """A copy in memory of its own, with these strides or plain ones."""
    if strides is None:
        return torch.empty(shape, dtype=values.dtype).copy_(values)
    return torch.empty_strided(shape, strides, dtype=values.dtype).copy_(values)


def _digest(text: str, plain: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(plain):
        digest.update(name.encode())
        digest.update(plain[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@runtime_checkable
class WithinTask(Protocol):
    """A plugin that can tell all that it changes while a task is trained.

    What it prepares where a task begins needs not be told: that is done again before `go_on`.
    """

    def within_task(self, strategy: Any) -> State | None:
        """What it is after this epoch; None where it cannot tell."""

    def go_on(self, strategy: Any, state: State) -> None:
        """Take up what `within_task` told."""


class Steady:
    """For plugins that change nothing of theirs while a task is trained."""

    def within_task(self, strategy: Any) -> State | None:
        """Nothing."""
        return {}, {}

    def go_on(self, strategy: Any, state: State) -> None:
        """Nothing."""


def _forget(snapshot: Snapshot) -> None:
    """Keep nothing."""


@dataclass
class Snapshots:
    """When the training of a task is kept, by whom, and from what it goes on.

    minutes: between snapshots, taken where the next epoch ends; 0 for none. `keep` is given each.
    `pending`: where the training of its task has to go on; `spent`: the seconds it had taken.
    Raises ConfigurationError for minutes that are negative or not finite.
    """

    minutes: float = 0.0
    keep: Callable[[Snapshot], None] = _forget
    pending: Snapshot | None = None
    spent: float = 0.0
    _began: float = field(default=0.0, repr=False)
    _last: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        """Check the minutes."""
        if not (math.isfinite(self.minutes) and self.minutes >= 0):
            raise ConfigurationError(
                f"there are {self.minutes:g} minutes between snapshots: give 0 or more"
            )

    def begin(self, task: int) -> Snapshot | None:
        """Begin to count the time of a task; where it has to go on."""
        self._began = self._last = time.perf_counter()
        pending, self.pending = self.pending, None
        if pending is None or pending.task != task:
            self.spent = 0.0
            return None
        self.spent = float(pending.values["spent"])
        return pending

    def due(self) -> bool:
        """Whether it is time for a snapshot."""
        return 0 < self.minutes * 60 <= time.perf_counter() - self._last

    def take(self, task: int, epoch: int, state: State) -> None:
        """Give a snapshot to `keep`."""
        tensors, values = state
        spent = self.spent + time.perf_counter() - self._began
        self.keep(Snapshot(task, epoch, tensors, {**values, "spent": spent}))
        self._last = time.perf_counter()
