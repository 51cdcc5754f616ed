"""A multi-head learner that goes on from its files: network, and what its strategy remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

from firefly_cl.baselines.headed import load_memory, load_nets, save_nets
from firefly_cl.baselines.multihead import MultiHeadLearner, make_strategy
from firefly_cl.continual.learner import Setup
from firefly_cl.errors import FileError


class Memory(Protocol):
    """All that a strategy keeps from task to task beside the network."""

    def nbytes(self) -> int:
        """Its size in bytes."""

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors by name."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave, from the CPU; raises KeyError or ValueError for another's."""


class Nothing:
    """The memory of a strategy that keeps only its network."""

    def nbytes(self) -> int:
        """None."""
        return 0

    def state(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError if there is anything."""
        if state:
            raise ValueError(f"unexpected {', '.join(state)}")


class ResumableLearner(MultiHeadLearner):
    """A learner around one multi-head network and an Avalanche strategy that keeps `memory`.

    `plugins` must keep nothing else from one experience to the next. Where each is a `WithinTask`
    it can go on inside a task, too.
    """

    def __init__(
        self,
        setup: Setup,
        plugins: Sequence[SupervisedPlugin] = (),
        memory: Memory | None = None,
        norm: str = "shared",
        head: str = "multi",
    ) -> None:
        self.memory: Memory = Nothing() if memory is None else memory
        super().__init__(
            setup,
            plugins,
            self.memory.nbytes,
            norm=norm,
            snapshots=setup.snapshots,
            head=head,
        )
        self._plugins = plugins

    def save(self, folder: Path) -> None:
        """Write model.json, the weights and the memory; raises FileError."""
        save_nets(folder, self.model_kind, self.blueprint, [self.net], self.memory.state())

    def resume(self, folder: Path, tasks: int) -> None:
        """Take up what `save` wrote after `tasks` tasks; raises FileError."""
        _, (net, *others) = load_nets(folder, self.network)
        if others or list(net.heads) != [str(task) for task in range(tasks)]:
            raise FileError(f"{folder} holds the tasks {list(net.heads)}, not the first {tasks}")
        try:
            self.memory.restore(load_memory(folder))
        except (KeyError, ValueError) as error:
            raise FileError(f"the memory in {folder} is of another strategy: {error}") from None
        self.net = net.train()
        self.model = self.headed_model()
        heads = [head for head in net.heads.values() if isinstance(head, nn.Linear)]
        self.model.max_class_label = max(head.out_features for head in heads)
        self.strategy = make_strategy(
            self.setup, self.model, self._plugins, snapshots=self.setup.snapshots
        )
        self.tasks_trained = tasks
