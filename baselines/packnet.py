"""PackNet: each task keeps the largest of the weights that are free, and leaves the others.

Paper: Mallya and Lazebnik 2018, "PackNet: Adding Multiple Tasks to a Single Network by Iterative
Pruning", arXiv 1711.05769. A task trains all weights that no older task owns; then the smallest of
each layer are pruned and the rest trains on. Older weights are put back after every step, so older
tasks answer to the same bits for ever. Unlike the paper, every task has biases and batch norms of
its own, which begin from those of the task before. Mixed images train as they do in `naive`:
pruning looks at weights alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from firefly_cl.baselines.packed import PackedNet
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.errors import ConfigurationError
from firefly_cl.search_space import Range, searched


@dataclass(frozen=True)
class PacknetOptions:
    """What part of the free weights of every layer a task prunes, and when.

    prune_proportion: "equal" leaves every task of the whole stream as many weights, or a number
    (the paper's are 0.5 and 0.75, for two or three added tasks). post_prune_share: what part of
    the run's epochs is left for training after pruning, on the falling end of the schedule; the
    paper's third of all epochs.
    """

    prune_proportion: str = "equal"
    post_prune_share: float = searched(1 / 3, Range(0.1, 0.7))

    def __post_init__(self) -> None:
        """Check both."""
        try:
            good = self.prune_proportion == "equal" or 0 <= float(self.prune_proportion) < 1
        except ValueError:
            good = False
        if not good:
            raise ConfigurationError(
                f"prune_proportion is {self.prune_proportion!r}; it must be equal, or a number "
                "in [0, 1)"
            )
        if not 0 <= self.post_prune_share < 1:
            raise ConfigurationError(
                f"post_prune_share is {self.post_prune_share}; it must be in [0, 1)"
            )

    def kept(self, free: int, tasks_left: int) -> int:
        """How many of a layer's free weights a task keeps; it and later ones are `tasks_left`."""
        if self.prune_proportion == "equal":
            return math.ceil(free / max(tasks_left, 1))
        return math.ceil(free * (1 - float(self.prune_proportion)))


class PruningPlugin(SupervisedPlugin):
    """Trains what is free of a PackedNet, prunes it, and trains what is left."""

    def __init__(self, setup: Setup, options: PacknetOptions) -> None:
        super().__init__()
        self.setup = setup
        self.options = options
        self._held: dict[str, tuple[Tensor, Tensor]] = {}
        self._number = 0
        self._epochs = 0

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Hold the weights of older tasks; the free ones begin at zero, where they were pruned."""
        net: PackedNet = strategy.model.net
        self._number, self._epochs = len(net.statistics), 0
        self._hold(net, owner=0)

    @torch.no_grad()
    def after_update(self, strategy: Any, **kwargs: object) -> None:
        """Put back what must not change, whatever the optimizer did."""
        for name, weights in strategy.model.net.packed():
            free, held = self._held[name]
            weights.copy_(torch.where(free, weights, held))

    def after_training_epoch(self, strategy: Any, **kwargs: object) -> None:
        """Prune, when the epochs left are those for what is kept."""
        self._epochs += 1
        left = round(self.setup.recipe.epochs * self.options.post_prune_share)
        if self._epochs == max(self.setup.recipe.epochs - left, 1):
            self._prune(strategy.model.net)

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Let go of the copies."""
        self._held = {}

    @torch.no_grad()
    def _prune(self, net: PackedNet) -> None:
        """The task owns the largest of each layer's free weights; the others become zero."""
        tasks_left = self.setup.scenario.n_tasks - self._number
        for name, weights in net.packed():
            owner = net.owner(name)
            sizes = torch.where(owner == 0, weights.abs(), -1.0).flatten()
            kept = sizes.topk(self.options.kept(int((owner == 0).sum()), tasks_left)).indices
            mine = torch.zeros_like(sizes, dtype=torch.bool)
            mine[kept] = True
            owner[mine.view_as(owner)] = self._number + 1
            weights.copy_(torch.where(owner > 0, weights, 0.0))
        self._hold(net, owner=self._number + 1)

    def _hold(self, net: PackedNet, owner: int) -> None:
        """Let only the weights of `owner` change from here."""
        self._held = {
            name: (net.owner(name) == owner, weights.detach().clone())
            for name, weights in net.packed()
        }


class PacknetLearner(ResumableLearner):
    """A learner around one PackedNet; what tasks own is counted as a mask of 1 bit for each."""

    network = PackedNet
    model_kind = "packed"

    def __init__(self, setup: Setup, options: PacknetOptions) -> None:
        super().__init__(setup, [PruningPlugin(setup, options)], norm="task")

    def floats(self) -> int:
        """Packed weights, heads, and each task's biases, norms and statistics."""
        return cast(PackedNet, self.net).floats()

    def bytes(self) -> int:
        """4 for each float, and the masks."""
        return 4 * self.floats() + cast(PackedNet, self.net).mask_bytes()


@STRATEGIES.register("packnet", options=PacknetOptions)
def packnet(setup: Setup) -> PacknetLearner:
    """PackNet; options prune_proportion and post_prune_share."""
    return PacknetLearner(setup, read_options(setup.options, PacknetOptions))
