"""Joint training on all tasks at once: the upper bound, which sees all data together.

Nothing is trained until the last streamed task has arrived; then Avalanche's JointTraining runs
once over the images of all tasks, shuffled together, with the recipe's epochs. Accuracies
after earlier tasks do not exist: `tasks_trained` stays 0 until then. The stored images
count as memory.
"""

from __future__ import annotations

import time
from typing import Any

from avalanche.training.supervised import JointTraining

from firefly_cl.baselines.multihead import HeadOptions, MultiHeadLearner, train_seeded
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options


class JointLearner(MultiHeadLearner):
    """A multi-head network trained once, when all tasks have arrived."""

    def __init__(self, setup: Setup, head: str) -> None:
        super().__init__(setup, kept=self._stored, kind=JointTraining, head=head)
        self.waiting: list[Any] = []

    def train(self, experience: Any) -> None:
        """Keep the experience; train on all of them if it is the last of the scenario."""
        self.waiting.append(experience)
        if len(self.waiting) < len(self.setup.scenario.tasks):
            return
        start = time.perf_counter()
        train_seeded(self.setup, self.strategy, self.waiting, 0)
        self.tasks_trained = len(self.waiting)
        self.seconds["train"] += time.perf_counter() - start

    def _stored(self) -> int:
        seen = self.setup.scenario.tasks[: len(self.waiting)]
        return sum(task.train.images.nbytes + task.train.labels.nbytes for task in seen)


@STRATEGIES.register("joint", options=HeadOptions)
def joint(setup: Setup) -> JointLearner:
    """Joint training; option head."""
    return JointLearner(setup, read_options(setup.options, HeadOptions).head)
