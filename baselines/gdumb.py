"""GDumb: a network trained from scratch on a class-balanced memory, after every task.

Paper: Prabhu, Torr, Dokania 2020, "GDumb: A Simple Approach that Questions Our Progress in
Continual Learning" (ECCV). Nothing is learnt from images that the memory does not hold. Epochs and
the rest are the run's, so a small memory also means few steps. Remembered images of one task are
mixed with one another as in joint training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from firefly_cl.baselines.exemplars import Exemplars, check_mem_size
from firefly_cl.baselines.multihead import HeadOptions, make_strategy
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.scenarios import images_of
from firefly_cl.scenarios.stream import dataset_of


@dataclass(frozen=True)
class GdumbOptions(HeadOptions):
    """Images kept in total, as in replay; `head`: see HeadOptions."""

    mem_size: int = 2000

    def __post_init__(self) -> None:
        """Check both."""
        super().__post_init__()
        check_mem_size(self.mem_size)


class MemoryAlonePlugin(SupervisedPlugin):
    """Lets the images of an experience into the memory and trains on the memory instead."""

    def __init__(self, exemplars: Exemplars) -> None:
        super().__init__()
        self.exemplars = exemplars

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: object) -> None:
        """Put the memory in the place of the task's images."""
        self.exemplars.add(images_of(strategy.experience.dataset))
        assert self.exemplars.images is not None
        strategy.adapted_dataset = dataset_of(self.exemplars.images)


class GdumbLearner(ResumableLearner):
    """A multi-head network that every experience starts anew."""

    def __init__(self, setup: Setup, exemplars: Exemplars, head: str) -> None:
        super().__init__(setup, [MemoryAlonePlugin(exemplars)], exemplars, head=head)

    def train(self, experience: Any) -> None:
        """Train a new network on the memory; raises DivergenceError or DataError."""
        older = self.net.heads
        self.net = self.blueprint.build(self.setup.seed)
        self.model = self.headed_model()
        for task, head in older.items():
            self.model.add_head(int(task), cast(nn.Linear, head).out_features)
        self.strategy = make_strategy(self.setup, self.model, self._plugins)
        super().train(experience)


@STRATEGIES.register("gdumb", options=GdumbOptions)
def gdumb(setup: Setup) -> GdumbLearner:
    """GDumb; options mem_size and head."""
    options = read_options(setup.options, GdumbOptions)
    return GdumbLearner(setup, Exemplars(options.mem_size, "class"), options.head)
