"""The multi-head network as an Avalanche model, and the learner that the baselines share."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from avalanche.models import MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from firefly_cl.baselines.headed import (
    Blueprint,
    HeadedNet,
    answer_all,
    answer_task,
    count_floats,
    count_flops,
    layer_units,
    save_nets,
)
from firefly_cl.continual.learner import Setup
from firefly_cl.continual.loading import Pixels
from firefly_cl.continual.snapshot import Snapshots
from firefly_cl.continual.training import TrainingPlugin, experience_seed, make_optimizer
from firefly_cl.errors import ConfigurationError
from firefly_cl.network.modes import evaluation
from firefly_cl.scenarios import images_of

NORMS = ("shared", "task")

HEADS = ("multi", "single")


@dataclass(frozen=True)
class HeadOptions:
    """Which classes compete in training: those of each task ("multi") or of all ("single").

    "single" is one softmax over the classes of all tasks so far, as class-incremental methods
    train. Where the task is told, its classes alone answer in either case.
    """

    head: str = "multi"

    def __post_init__(self) -> None:
        """Check it."""
        if self.head not in HEADS:
            raise ConfigurationError(f"head is {self.head!r}; it must be one of {', '.join(HEADS)}")


class MultiHead(MultiTaskModule):
    """A trunk shared by all tasks and a head for each, grown where a task is first trained.

    Unlike MultiTaskModule's own, its forward runs the trunk once on a batch of several tasks,
    so that batch norm sees the whole batch. Columns that a task does not have are
    minus infinity. Tasks without a head, which Avalanche evaluates when it is given a whole
    stream, answer zeros.

    `single_head`: in training the logits are those of `among_all`.
    """

    def __init__(self, net: HeadedNet, seed: int, *, single_head: bool = False) -> None:
        super().__init__()
        self.net = net
        self.seed = seed
        self.single_head = single_head

    def adaptation(self, experience: Any) -> None:
        """Add the heads of an experience's tasks; only in training."""
        super().adaptation(experience)
        if not self.training:
            return
        n_classes = max(experience.classes_in_this_experience) + 1
        for task in experience.task_labels:
            if str(task) not in self.net.heads:
                self.add_head(task, n_classes)

    def add_head(self, task: int, n_classes: int) -> None:
        """A head for `task`, drawn by the seed."""
        generator = torch.Generator().manual_seed(experience_seed(self.seed, task))
        self.net.add_head(task, n_classes, generator)

    def heads(self) -> tuple[list[nn.Parameter], int]:
        """Parameters of all heads, and how many features they read."""
        return list(self.net.heads.parameters()), self.net.features

    def forward(self, x: Tensor, task_labels: Tensor | int | None) -> Tensor | dict[int, Tensor]:
        """Logits (B, classes) of normalised images, by the tasks' own heads.

        Without task labels: the logits of every task trained so far.
        """
        if task_labels is None:
            return {int(task): self.net(x, int(task)) for task in self.net.heads}
        if self.single_head and self.training:
            return self.among_all(x, task_labels)
        if isinstance(task_labels, int):
            return self.forward_single_task(x, task_labels)
        tasks: list[int] = torch.unique(task_labels).tolist()
        if len(tasks) == 1:
            return self.forward_single_task(x, tasks[0])
        features: Tensor = self.net.trunk(x)
        heads = {task: cast(nn.Linear, self.net.heads[str(task)]) for task in tasks}
        classes = max(head.out_features for head in heads.values())
        logits = features.new_full((len(x), classes), -torch.inf, dtype=torch.float32)
        for task, head in heads.items():
            rows = (task_labels == task).nonzero().squeeze(1)
            logits[rows, : head.out_features] = head(features[rows]).float()
        return logits

    def among_all(self, x: Tensor, task_labels: Tensor | int) -> Tensor:
        """Logits (B, classes of all tasks) of normalised images, those of their own task first.

        Labels, which count from zero in each task, so remain the numbers of their columns. The
        classes of the other tasks follow in the order in which these came, so that a row only
        becomes longer with further tasks.
        """
        logits = torch.cat(self.net.every_head(x), dim=1)
        tasks = torch.as_tensor(task_labels, device=x.device).expand(len(x))
        heads = {int(task): cast(nn.Linear, head) for task, head in self.net.heads.items()}
        owner = torch.cat([torch.full((h.out_features,), task) for task, h in heads.items()])
        present, rows = torch.unique(tasks, return_inverse=True)
        orders = [(owner != task).to(torch.uint8).argsort(stable=True) for task in present.tolist()]
        return logits.gather(1, torch.stack(orders).to(x.device)[rows])

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Logits (B, classes of the task)."""
        if str(task_label) in self.net.heads:
            logits: Tensor = self.net(x, task_label)
            return logits
        return x.new_zeros(len(x), max(self.max_class_label, 1))


def blueprint_of(setup: Setup) -> Blueprint:
    """What `setup` says about the network."""
    scenario = setup.scenario
    return Blueprint(
        setup.backbone,
        setup.width,
        setup.constant_width,
        scenario.image_shape,
        scenario.mean,
        scenario.std,
        setup.views.mirrored,
        setup.views.shifted,
    )


def pixels_of(setup: Setup) -> Pixels:
    """How the pixels of `setup` become inputs."""
    scenario = setup.scenario
    return Pixels(scenario.mean, scenario.std, scenario.flip)


def training_plugin(setup: Setup, snapshots: Snapshots | None = None) -> TrainingPlugin:
    """Training by the recipe of `setup`."""
    return TrainingPlugin(
        setup.recipe,
        pixels_of(setup),
        seed=setup.seed,
        tasks=len(setup.scenario.tasks),
        progress=setup.progress,
        snapshots=snapshots,
    )


def make_strategy(
    setup: Setup,
    model: nn.Module,
    plugins: Sequence[SupervisedPlugin] = (),
    kind: type[SupervisedTemplate] = Naive,
    snapshots: Snapshots | None = None,
) -> SupervisedTemplate:
    """An Avalanche strategy of the given kind that trains by the recipe of `setup`.

    `snapshots`: those of `setup`, where all that a training changes is in the model, the optimizer
    and the plugins.
    """
    model.to(setup.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        evaluator = EvaluationPlugin()
    # JointTraining divides a batch among the tasks and needs one image for each at least.
    batch_size = max(setup.recipe.batch_size, len(setup.scenario.tasks))
    return kind(
        model=model,
        optimizer=make_optimizer(setup.recipe, model.parameters()),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch_size,
        train_epochs=setup.recipe.epochs,
        eval_mb_size=batch_size,
        device=setup.device,
        plugins=[*plugins, training_plugin(setup, snapshots)],
        evaluator=evaluator,
    )


class MultiHeadLearner:
    """A learner around one multi-head network and an Avalanche strategy.

    `kept` counts the bytes that the strategy keeps from task to task beside the network.

    Batch norm's scales and shifts are shared by all tasks. So are its running statistics with
    `norm` "shared", as in Avalanche's own baselines: they follow the task trained last, and that
    drift is part of what is forgotten. With `norm` "task" each task is evaluated with the
    statistics of the end of its own training, which helps where the weights stay put (EWC) and
    hurts where they move (naive). `head` as in HeadOptions.
    """

    network: type[HeadedNet] = HeadedNet
    model_kind = "multihead"

    def __init__(
        self,
        setup: Setup,
        plugins: Sequence[SupervisedPlugin] = (),
        kept: Callable[[], int] = lambda: 0,
        kind: type[SupervisedTemplate] = Naive,
        norm: str = "shared",
        snapshots: Snapshots | None = None,
        head: str = "multi",
    ) -> None:
        if norm not in NORMS:
            raise ConfigurationError(f"norm is {norm!r}; it must be one of {', '.join(NORMS)}")
        self.norm = norm
        self.setup = setup
        self.blueprint = blueprint_of(setup)
        self.net = self.blueprint.build(setup.seed, self.network)
        self.single_head = head == "single"
        self.model = self.headed_model()
        self.strategy = make_strategy(setup, self.model, plugins, kind, snapshots)
        self.tasks_trained = 0
        self.growth_events: list[dict[str, object]] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self._kept = kept

    def headed_model(self) -> MultiHead:
        """The network as an Avalanche model."""
        return MultiHead(self.net, self.setup.seed, single_head=self.single_head)

    def train(self, experience: Any) -> None:
        """Learn the next experience; raises DivergenceError or DataError."""
        start = time.perf_counter()
        train_seeded(self.setup, self.strategy, experience, self.tasks_trained)
        if self.norm == "task":
            for task in experience.task_labels:
                self.net.keep_statistics(task)
        self.tasks_trained += 1
        self.seconds["train"] += time.perf_counter() - start + self.setup.snapshots.spent

    def logits(self, task: int, images: Tensor) -> Tensor:
        """Answers (n, classes of the task), float32 on the CPU, to images (n, C, H, W) uint8."""
        start = time.perf_counter()
        logits = answer_task(self.net, self.blueprint, task, images)
        self.seconds["evaluate"] += time.perf_counter() - start
        return logits

    def all_logits(self, images: Tensor) -> list[Tensor] | None:
        """Answers of every head; None where tasks have batch norms or weights of their own."""
        return None if self.net.statistics else answer_all(self.net, self.blueprint, images)

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode inside."""
        return evaluation(self.net)

    def floats(self) -> int:
        """Weights, norms and heads."""
        return count_floats(self.net)

    def bytes(self) -> int:
        """4 for each float, and what the strategy keeps beside the network."""
        return 4 * self.floats() + self._kept()

    def flops(self, task: int) -> int:
        """Operations of one image through trunk and head."""
        return count_flops(self.net, self.blueprint, task)

    def widths(self) -> dict[str, list[int]]:
        """Units of every layer; the first task owns them all."""
        return {name: [units] for name, units in layer_units(self.net).items()}

    def save(self, folder: Path) -> None:
        """Write model.json and the weights; raises FileError."""
        save_nets(folder, self.model_kind, self.blueprint, [self.net])


def train_seeded(setup: Setup, strategy: SupervisedTemplate, experiences: Any, number: int) -> None:
    """Train; what draws from torch's global generator (memories, dropout) draws by the seed.

    Raises DataError for an experience that is empty, damaged or of a single class.
    """
    for experience in experiences if isinstance(experiences, list) else [experiences]:
        images_of(experience.dataset).require_classes()
    devices = [setup.device] if setup.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(experience_seed(setup.seed, number))
        strategy.train(experiences, eval_streams=[])
