"""Elastic weight consolidation: weights that mattered to older tasks are held by springs.

Paper: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks". One
quadratic for every older task (Avalanche's mode "separate"). Importances are the diagonal of the
empirical Fisher information, measured on plain images and labels, whatever is mixed in training.
Avalanche squares gradients of batches instead, and with them the order of the images. Scales and
shifts of batch norm are held too; of its running statistics, which no penalty reaches, each task
keeps its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from firefly_cl.baselines.importances import mean_over_images
from firefly_cl.baselines.multihead import pixels_of
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.baselines.springs import Springs
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.continual.loading import Pixels
from firefly_cl.continual.snapshot import Steady
from firefly_cl.errors import ConfigurationError
from firefly_cl.scenarios import images_of
from firefly_cl.search_space import Choice, Range, searched


@dataclass(frozen=True)
class EwcOptions:
    """The weight of the penalty; whose batch-norm statistics a task is evaluated with.

    300 is as good as 100 and 1000 on validation images of split-digits, and better than 30.
    Statistics of each "task" were better than "shared" ones there and on three superclasses of
    CIFAR-100. These are short trials that left no record.
    """

    ewc_lambda: float = searched(300.0, Range(1.0, 1e5, log=True))
    norm: str = searched("task", Choice(("task", "shared")))

    def __post_init__(self) -> None:
        """Check it."""
        if not 0 <= self.ewc_lambda < float("inf"):
            raise ConfigurationError(f"ewc_lambda is {self.ewc_lambda}; it must be 0 or more")


class ConsolidationPlugin(Steady, SupervisedPlugin):
    """The penalty of all older tasks, its sum over tasks kept as one quadratic.

    lambda * sum_t sum_i F_ti (w_i - w_ti)^2 = lambda * (sum_i A_i (w_i - m_i)^2 + c) with
    A = sum_t F_t, m = sum_t F_t w_t / A and c = sum_i (sum_t F_t w_t^2 - A m^2): the same
    function of w at a cost that does not grow with the tasks.
    """

    def __init__(self, springs: Springs, pixels: Pixels) -> None:
        super().__init__()
        self.springs = springs
        self.pixels = pixels

    def before_backward(self, strategy: Any, **kwargs: object) -> None:
        """Add the penalty to the loss."""
        if self.springs.stiffness:
            strategy.loss += self.springs.strength * self.springs.penalty(strategy.model)

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Measure the importances on the task just learnt and add its quadratic."""
        self.springs.add(self.importances_of(strategy), strategy.model)

    def importances_of(self, strategy: Any) -> dict[str, Tensor]:
        """Mean squares of images' gradients of the plain loss on the task just learnt, by name."""
        images = images_of(strategy.experience.dataset)
        return mean_over_images(strategy.model, images, self.pixels, F.cross_entropy, torch.square)


@STRATEGIES.register("ewc", options=EwcOptions)
def ewc(setup: Setup) -> ResumableLearner:
    """Elastic weight consolidation; options ewc_lambda and norm."""
    options = read_options(setup.options, EwcOptions)
    springs = Springs(options.ewc_lambda, setup.recipe.learning_rate, setup.device)
    plugin = ConsolidationPlugin(springs, pixels_of(setup))
    return ResumableLearner(setup, [plugin], springs, norm=options.norm)
