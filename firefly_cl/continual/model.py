"""The growing network as Avalanche sees it: a multi-task module that gains a task by adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from firefly_cl.continual.plan import Plan
from firefly_cl.continual.training import experience_seed
from firefly_cl.continual.views import Laterals
from firefly_cl.errors import ConfigurationError, DataError, FileError
from firefly_cl.network import FireflyNet, Selection, floats, task_floats
from firefly_cl.network.files import load_net, net_of, save_net, structure_of
from firefly_cl.network.inherit import inherit
from firefly_cl.network.laterals import lateral_factor
from firefly_cl.network.layers import GrowableLayer


class FireflyModel(MultiTaskModule):
    """A FireflyNet behind Avalanche's task labels.

    Training on an experience with a new task label begins a new task of the network, with the
    seed units and reads of `plan`; `tasks` says which one belongs to which label. Tasks that are
    not known yet answer zeros when Avalanche evaluates a whole stream. `budget`: floats that the
    network may hold; a task begins with fewer seed units where they would not fit. `total`: the
    budget of all tasks, which the first one's head may use whole. `source`: the task of the network
    that the next one begins with copies of, where the plan says so; none: the one before.
    """

    def __init__(self, net: FireflyNet, plan: Plan, seed: int = 0) -> None:
        super().__init__()
        self.net = net
        self.plan = plan
        self.seed = seed
        self.budget: int | None = None
        self.total: int | None = None
        self.source: int | None = None
        self.tasks: dict[int, int] = {}

    @staticmethod
    def wrap(
        model: nn.Module, example_input: Tensor | None, plan: Plan, seed: int = 0
    ) -> FireflyModel:
        """From a FireflyModel (as it is), a FireflyNet, or a plain model and one input batch.

        Raises ConfigurationError where a plain model comes without an input.
        """
        if isinstance(model, FireflyModel):
            return model
        if not isinstance(model, FireflyNet):
            if example_input is None:
                raise ConfigurationError(
                    f"{type(model).__name__} must be traced to grow: pass example_input, one "
                    "batch of inputs such as torch.zeros(2, 3, 32, 32)"
                )
            model = FireflyNet.from_module(model, example_input)
        return FireflyModel(model, plan, seed)

    def adaptation(self, experience: Any) -> None:
        """Begin the task of a training experience; nothing happens in evaluation.

        Raises DataError for an experience that is empty or has a single class, and
        ConfigurationError where it mixes tasks or repeats one.
        """
        require_images(experience)
        number = getattr(experience, "current_experience", "?")
        super().adaptation(experience)
        if not self.training:
            return
        labels = list(experience.task_labels)
        classes = list(experience.classes_in_this_experience)
        if len(labels) != 1:
            raise ConfigurationError(
                f"experience {number} mixes tasks {labels}: give every experience one task label"
            )
        if len(classes) < 2:
            raise DataError(
                f"experience {number} has the single class {classes}: join it with another"
            )
        if self.tasks.get(labels[0]) == self.net.current and not self.net.tasks[-1].frozen:
            raise ConfigurationError(
                f"the training of task label {labels[0]} was broken off: begin with a new "
                "strategy, or with a model saved before that task"
            )
        if labels[0] in self.tasks:
            raise ConfigurationError(
                f"experience {number} has task label {labels[0]}, which was learnt before: build "
                "the benchmark with a task label for each experience (Avalanche: task_labels=True, "
                "or return_task_id=True)"
            )
        self._begin(labels[0], max(classes) + 1)

    def _begin(self, label: int, classes: int) -> None:
        net = self.net
        generator = torch.Generator().manual_seed(experience_seed(self.seed, label))
        if not self.tasks and len(net.tasks) == 1 and not net.tasks[0].frozen:
            self._require_room(classes)
            net.replace_head(classes, generator)
        else:
            if not net.tasks[-1].frozen:
                net.freeze()
            reads = self.plan.reads(net)
            if self.budget is None:
                widths = self.plan.seed_widths(net, self.source)
            else:
                widths = fitting(net, classes, self.plan, reads, self.budget, self.source)
            net.begin_task(classes, widths, reads, generator)
            inherit(net, self.plan.originals(net, self.source), self.source)
        self.tasks[label] = net.current

    def _require_room(self, classes: int) -> None:
        head = sum(parameter.numel() for parameter in self.heads()[0])
        more = head // self.net.tasks[-1].classes * classes - head
        if self.total is not None and (held := floats(self.net) + more) > self.total:
            raise ConfigurationError(
                f"the network has {held} floats with a head for the {classes} classes of the "
                f"first task, over the budget of {self.total}: start narrower or give a larger "
                "budget"
            )

    def heads(self) -> tuple[list[nn.Parameter], int]:
        """Parameters of the newest task's head, and how many features it reads."""
        layer = next(self.net.layers[n.name] for n in self.net.nodes if n.kind == "head")
        assert isinstance(layer, GrowableLayer)
        block = layer.block(self.net.current)
        assert block is not None
        return list(block.parameters()), block.from_old.shape[1] + block.from_own.shape[1]

    @property
    def laterals(self) -> Laterals | None:
        """How often lateral heads count, for `Views.shares`; None where there are none."""
        return partial(lateral_factor, self.net) if len(self.net.laterals) else None

    def structure(self) -> dict[str, Any]:
        """The network without its numbers, as JSON values."""
        return structure_of(self.net)

    def rebuild(self, structure: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """Put the network of a structure and a `state_dict` of this model in the place of this."""
        device = next(self.net.parameters()).device
        inner = {name.removeprefix("net."): part for name, part in state.items()}
        self.net = net_of(structure, inner).to(device).train(self.training)

    def save(self, path: Path | str) -> None:
        """Write the network, and which task belongs to which label, to a file.

        Raises FileError.
        """
        save_net(self.net, path, {"labels": sorted(self.tasks.items())})

    @staticmethod
    def load(path: Path | str, plan: Plan | None = None, seed: int = 0) -> FireflyModel:
        """What `save` wrote, in evaluation mode; further tasks begin by `plan`.

        Raises FileError.
        """
        net, extra = load_net(path)
        model = FireflyModel(net, plan or Plan(), seed)
        try:
            model.tasks = {int(label): int(task) for label, task in extra["labels"]}
        except (KeyError, TypeError, ValueError):
            raise FileError(f"{path} has no task labels: read it with load_net") from None
        model.eval()
        return model

    def forward(
        self, x: Tensor, task_labels: Tensor | int | None = None
    ) -> Tensor | dict[int, Tensor]:
        """Logits (B, classes), each sample by its own task's function; without labels, by label."""
        if x.dtype == torch.uint8:
            raise DataError(
                "images are uint8, and the network takes floats: stream inputs, as "
                "scenario.benchmark(normalised=True) does, or give the strategy a recipe"
            )
        if task_labels is None:
            return {label: self.forward_single_task(x, label) for label in self.tasks}
        if not isinstance(task_labels, int):
            found = sorted(set(task_labels.tolist()))
            if len(found) != 1:
                logits: Tensor = super().forward(x, task_labels)
                return logits
            task_labels = int(found[0])
        return self.forward_single_task(x, task_labels)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Logits (B, classes of the task)."""
        if task_label not in self.tasks:
            return x.new_zeros(len(x), max(self.max_class_label, 1))
        logits: Tensor = self.net(x, self.tasks[task_label])
        return logits


def fitting(
    net: FireflyNet,
    classes: int,
    plan: Plan,
    reads: Selection,
    budget: int,
    source: int | None = None,
) -> dict[str, int]:
    """Seed widths for the next task, made smaller together until the budget (floats) pays them.

    Growth keeps what one step may add, unless the task starts from copies: to cut these would undo
    growth before. A task that can have no unit of its own still gets its head, and units where
    this would read nothing otherwise. source: as for `Plan.seed_widths`. Raises ConfigurationError
    where even that does not fit.
    """
    widths = plan.seed_widths(net, source)
    left = budget - floats(net)
    keeps = plan.growth if plan.grow_at and plan.start == "random" else 0.0
    seeds = left / (1 + keeps)
    for share in (1 - step / 64 for step in range(64)):
        smaller = connected(net, {name: int(share * n) for name, n in widths.items()}, reads)
        if task_floats(net, classes, smaller, reads) <= seeds:
            return smaller
    least = connected(net, dict.fromkeys(widths, 0), reads)
    if (needed := task_floats(net, classes, least, reads)) <= left:
        return least
    what = "head and the units that lead to it need" if any(least.values()) else "head needs"
    raise ConfigurationError(
        f"the budget of {budget} floats leaves {max(left, 0)} for task {len(net.tasks)}, "
        f"whose {what} {needed}: give a larger budget or start narrower"
    )


def connected(net: FireflyNet, widths: Mapping[str, int], reads: Selection) -> dict[str, int]:
    """`widths`, with a unit more wherever a layer with rows for the task would read nothing.

    Of several spaces that the layer reads, the first in the order of the graph has it.
    """
    found = dict(widths)
    layers = [layer for layer in net.layers.values() if isinstance(layer, GrowableLayer)]
    while bare := [layer for layer in layers if _reads_nothing(layer, found, reads)]:
        read = {s.space for s in bare[0].reads}
        found[next(space for space in found if space in read)] = 1
    return found


def _reads_nothing(layer: GrowableLayer, widths: Mapping[str, int], reads: Selection) -> bool:
    if layer.per_unit or layer.is_residual:
        return False
    if not (layer.is_head or any(widths.get(s.space) for s in layer.writes)):
        return False
    return not any(len(reads[s.space]) or widths.get(s.space) for s in layer.reads)


def require_images(experience: Any) -> None:
    """Raise DataError for an experience without images."""
    if len(experience.dataset) == 0:
        number = getattr(experience, "current_experience", "?")
        raise DataError(f"experience {number} is empty: give it images or leave it out")
