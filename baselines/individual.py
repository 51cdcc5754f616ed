"""One network of its own for every task: nothing is shared, nothing is forgotten, size adds up."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from firefly_cl.baselines.headed import (
    HeadedNet,
    answer_task,
    count_floats,
    count_flops,
    layer_units,
    load_nets,
    save_nets,
)
from firefly_cl.baselines.multihead import MultiHead, blueprint_of, make_strategy, train_seeded
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import NoOptions, Setup, read_options
from firefly_cl.continual.training import experience_seed
from firefly_cl.errors import ConfigurationError, FileError
from firefly_cl.network.modes import evaluation


class IndividualLearner:
    """Avalanche's Naive with a fresh network for each task."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.blueprint = blueprint_of(setup)
        self.nets: dict[int, HeadedNet] = {}
        self.tasks_trained = 0
        self.growth_events: list[dict[str, object]] = []
        self.seconds: dict[str, float] = defaultdict(float)

    def train(self, experience: Any) -> None:
        """Learn the next experience on its own; raises DivergenceError or DataError."""
        start = time.perf_counter()
        number = self.tasks_trained
        net = self.blueprint.build(experience_seed(self.setup.seed, number))
        model = MultiHead(net, self.setup.seed)
        strategy = make_strategy(self.setup, model, snapshots=self.setup.snapshots)
        train_seeded(self.setup, strategy, experience, number)
        self.nets.update((int(task), net) for task in net.heads)
        self.tasks_trained += 1
        self.seconds["train"] += time.perf_counter() - start + self.setup.snapshots.spent

    def logits(self, task: int, images: Tensor) -> Tensor:
        """Answers (n, classes of the task), float32 on the CPU, to images (n, C, H, W) uint8."""
        start = time.perf_counter()
        logits = answer_task(self._net(task), self.blueprint, task, images)
        self.seconds["evaluate"] += time.perf_counter() - start
        return logits

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode inside."""
        return evaluation(nn.ModuleList(self.nets.values()))

    def floats(self) -> int:
        """The numbers of all networks."""
        return sum(count_floats(net) for net in self.nets.values())

    def bytes(self) -> int:
        """4 for each float."""
        return 4 * self.floats()

    def flops(self, task: int) -> int:
        """Operations of one image through the task's network."""
        return count_flops(self._net(task), self.blueprint, task)

    def widths(self) -> dict[str, list[int]]:
        """Units of every layer, those of each task apart."""
        widths: dict[str, list[int]] = defaultdict(list)
        for net in self.nets.values():
            for name, units in layer_units(net).items():
                widths[name].append(units)
        return dict(widths)

    def save(self, folder: Path) -> None:
        """Write model.json and the weights; raises FileError."""
        save_nets(folder, "individual", self.blueprint, list(self.nets.values()))

    def resume(self, folder: Path, tasks: int) -> None:
        """Take up what `save` wrote after `tasks` tasks; raises FileError."""
        _, nets = load_nets(folder)
        found = {int(task): net.to(self.setup.device) for net in nets for task in net.heads}
        if list(found) != list(range(tasks)):
            raise FileError(f"{folder} holds the tasks {list(found)}, not the first {tasks}")
        self.nets, self.tasks_trained = found, tasks

    def _net(self, task: int) -> HeadedNet:
        if task not in self.nets:
            raise ConfigurationError(
                f"task {task} has not been trained; trained so far: "
                + (", ".join(map(str, self.nets)) or "none")
            )
        return self.nets[task]


@STRATEGIES.register("individual", options=NoOptions)
def individual(setup: Setup) -> IndividualLearner:
    """One network a task; takes no options."""
    read_options(setup.options, NoOptions)
    return IndividualLearner(setup)
