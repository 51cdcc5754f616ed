"""What the benchmark drives: a learner is told of tasks one after another and asked for logits."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from firefly_cl.continual.recipe import Recipe
from firefly_cl.continual.snapshot import Snapshots
from firefly_cl.continual.views import Views
from firefly_cl.errors import FileError, Unreadable
from firefly_cl.settings import read_settings

if TYPE_CHECKING:
    from firefly_cl.continual.observer import Observer
    from firefly_cl.network.readings import Reading
    from firefly_cl.scenarios import Scenario

Options = TypeVar("Options")
Logits = Callable[[int, Tensor], Tensor]

EVALUATION_BATCH = 256
"""Images in one batch of every evaluation: logits depend on it in the last bits."""

SCHEMA = 1
"""Version of model.json; a larger one is refused."""

MODEL_KINDS = {
    "firefly": "firefly_cl.continual.saved_network",
    "multihead": "firefly_cl.baselines.headed",
    "individual": "firefly_cl.baselines.headed",
    "packed": "firefly_cl.baselines.packed",
    "masked": "firefly_cl.baselines.masked",
    "prototypes": "firefly_cl.baselines.prototypes",
}
"""The module whose `load(folder)` reads a model of that kind."""


@dataclass(frozen=True)
class Progress:
    """One line of news: after an epoch, or where a phase of a task begins."""

    task: int
    tasks: int
    phase: str
    epoch: int
    epochs: int
    loss: float | None = None
    accuracy: float | None = None
    units: int | None = None


def silent(progress: Progress) -> None:
    """Tell nobody."""


@dataclass
class Setup:
    """What the builder of a strategy receives; `budget` is in floats."""

    scenario: Scenario
    backbone: str = "resnet9"
    width: float = 1.0
    constant_width: int | None = None
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    budget: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[Progress], None] = silent
    snapshots: Snapshots = field(default_factory=Snapshots)

    def __post_init__(self) -> None:
        """Raise ConfigurationError for shifts that leave nothing of an image."""
        Views(shifted=self.recipe.shifted).fit(self.scenario.image_shape)

    @property
    def views(self) -> Views:
        """The views of an image that an answer is the mean of."""
        return Views(self.recipe.mirrored and self.scenario.flip, self.recipe.shifted)


class Learner(Protocol):
    """One strategy with one seed, from its first task to its last.

    Tasks 0 to `tasks_trained` - 1 can be asked about. `seconds` accumulates per phase and
    `growth_events` are json-able.
    """

    tasks_trained: int
    growth_events: list[dict[str, object]]
    seconds: dict[str, float]

    def train(self, experience: Any) -> None:
        """Learn the next experience of an Avalanche train stream."""

    def logits(self, task: int, images: Tensor) -> Tensor:
        """Answers (n, classes of the task), float32 on the CPU, to images (n, C, H, W) uint8."""

    def floats(self) -> int:
        """How many numbers are needed to answer any task so far."""

    def bytes(self) -> int:
        """Everything kept from task to task: the floats, stored images, importances, masks."""

    def flops(self, task: int) -> int:
        """Operations of one image through the task's function, a multiply-add counted as 2."""

    def widths(self) -> dict[str, list[int]]:
        """Units by owner task of every space or layer."""

    def save(self, folder: Path) -> None:
        """Write the model files; raises FileError where the folder cannot be written."""


@runtime_checkable
class Resumable(Protocol):
    """A learner that can go on from its model files, to the same bits as if never interrupted.

    Optional: a run of any other learner that was interrupted starts again.
    """

    def resume(self, folder: Path, tasks: int) -> None:
        """Take up, in a learner that has trained nothing, what `save` wrote after `tasks` tasks.

        Raises FileError, leaving the learner as it was, if the files do not hold that.
        """


@runtime_checkable
class Reusing(Protocol):
    """A learner whose tasks have units of their own and read some of older ones. Optional."""

    def reuse(self) -> list[list[int]]:
        """Units that each task reads of each owner: [task][owner]."""


@runtime_checkable
class Drawn(Protocol):
    """A learner whose network can be drawn: who reads whom between its spaces. Optional."""

    def readings(self) -> list[Reading]:
        """What the rows of each task read."""


@runtime_checkable
class Observed(Protocol):
    """A learner that shows growth, selection and pruning as they happen. Optional."""

    def observe(self, observer: Observer) -> None:
        """Show them to `observer` from here on."""


@runtime_checkable
class Evaluating(Protocol):
    """A learner that can be held in evaluation mode over many answers, as where it is used.

    Optional: the time of an answer is then that of the network alone.
    """

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode inside; afterwards all modes are as before."""


@runtime_checkable
class Competing(Protocol):
    """A learner whose tasks may share all but their heads, so that their logits can compete.

    Optional: asked for the class among those of all tasks, others compare probabilities.
    """

    def all_logits(self, images: Tensor) -> list[Tensor] | None:
        """As `logits`, of every task so far, from one pass; None if functions are not shared."""


@dataclass(frozen=True)
class NoOptions:
    """For strategies that have no options of their own."""


def read_options(given: Mapping[str, str], kind: type[Options]) -> Options:
    """The dataclass `kind` with its fields read from text; raises ConfigurationError."""
    return read_settings(given, kind, "strategy option")


def load_logits(folder: Path) -> Logits:
    """The saved model in `folder` as a function (task, uint8 images) -> logits.

    Raises FileError where files are missing, damaged, or of a newer schema.
    """
    path = Path(folder) / "model.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        kind, schema = told["kind"], int(told.get("schema", SCHEMA))
    except FileNotFoundError:
        raise FileError(
            f"no model in {folder}: model.json is missing: train again or restore the run folder"
        ) from None
    except OSError as error:
        raise Unreadable.of(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FileError(f"{path} is damaged: train again or restore the run folder") from None
    if schema > SCHEMA:
        raise FileError(
            f"{path} has schema {schema}, this version reads up to {SCHEMA}: update firefly_cl"
        )
    module = MODEL_KINDS.get(kind) if isinstance(kind, str) else None
    if module is None:
        known = ", ".join(MODEL_KINDS)
        raise FileError(f"{path} holds a model of kind {kind!r}; known are {known}: update")
    load: Callable[[Path], Logits] = importlib.import_module(module).load
    return load(Path(folder))
