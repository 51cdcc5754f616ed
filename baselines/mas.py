"""Memory aware synapses: weights that the answers are sensitive to are held by springs.

Paper: Aljundi et al. 2018, "Memory Aware Synapses: Learning what (not) to forget", arXiv
1711.09601, eq. 3: importance is the mean size of an image's gradient of the squared length of the
logits. Those of all tasks are summed up, as in the authors' code; Avalanche's MASPlugin halves the
older ones with every task, and soon holds the first no more. It also takes gradients of batches, in
training mode, and so disturbs batch norm. Importances need no labels and are measured on plain
images, whatever is mixed in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
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
class MasOptions:
    """Weight of the penalty, and whose batch-norm statistics a task is evaluated with.

    lambda_reg = 1 is Avalanche's and the authors'; "task" is EWC's, for the same reason.
    """

    lambda_reg: float = searched(1.0, Range(0.01, 100.0, log=True))
    norm: str = searched("task", Choice(("task", "shared")))

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.lambda_reg < float("inf"):
            raise ConfigurationError(f"lambda_reg is {self.lambda_reg}; it must be 0 or more")


class SensitivityPlugin(Steady, SupervisedPlugin):
    """Adds lambda * sum_i Omega_i (w_i - w_i')^2 with w' the weights after the last task."""

    def __init__(self, springs: Springs, pixels: Pixels) -> None:
        super().__init__()
        self.springs = springs
        self.pixels = pixels

    def after_backward(self, strategy: Any, **kwargs: object) -> None:
        """Add the gradient of the penalty."""
        self.springs.pull(strategy.model)

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Add the task's importances to the older ones and move the springs' centres here."""
        self.springs.replace(self.importances_of(strategy), strategy.model, kept=1.0)

    def importances_of(self, strategy: Any) -> dict[str, Tensor]:
        """Mean sizes, over images, of the gradients of |logits|^2, by name."""
        images = images_of(strategy.experience.dataset)
        return mean_over_images(
            strategy.model,
            images,
            self.pixels,
            lambda logits, _: logits.square().sum(),
            torch.abs,
        )


@STRATEGIES.register("mas", options=MasOptions)
def mas(setup: Setup) -> ResumableLearner:
    """Memory aware synapses; options lambda_reg and norm."""
    options = read_options(setup.options, MasOptions)
    springs = Springs(options.lambda_reg, setup.recipe.learning_rate, setup.device)
    plugin = SensitivityPlugin(springs, pixels_of(setup))
    return ResumableLearner(setup, [plugin], springs, norm=options.norm)
