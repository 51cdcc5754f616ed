"""Averaged gradient episodic memory: no step may raise the loss of remembered images.

Paper: Chaudhry et al. 2019, "Efficient Lifelong Learning with A-GEM", arXiv 1812.00420, eq. 11:
a gradient that points against the one of a batch of remembered images loses that part of itself.
Both gradients are those of the weights that the step moves: older heads stay. Avalanche's plugin
reads raw pixels without augmentation. Remembered images are augmented as new ones are, and never
mixed. Momentum and weight decay come after the projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from firefly_cl.baselines.exemplars import Exemplars, RehearsalPlugin, check_mem_size
from firefly_cl.baselines.multihead import HeadOptions
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.errors import ConfigurationError


@dataclass(frozen=True)
class AgemOptions(HeadOptions):
    """Images kept in total, equally many of each task, and how many of them make a reference.

    64 remembered images a step cost what replay costs; the paper takes 256 (MNIST) and more.
    `head`: see HeadOptions.
    """

    mem_size: int = 2000
    sample_size: int = 64

    def __post_init__(self) -> None:
        """Check all."""
        super().__post_init__()
        check_mem_size(self.mem_size)
        if self.sample_size < 2:
            raise ConfigurationError(f"sample_size is {self.sample_size}: draw at least 2 images")


class ProjectionPlugin(RehearsalPlugin):
    """Projects the gradient g to g - (g.r / r.r) r where g.r < 0, r that of recalled images."""

    def after_backward(self, strategy: Any, **kwargs: object) -> None:
        """Project the gradients of the step."""
        recalled = self.recall(strategy)
        if recalled is None:
            return
        logits, labels, _ = recalled
        weights = [w for w in strategy.model.parameters() if w.grad is not None]
        found = torch.autograd.grad(
            strategy._criterion.unmixed(logits, labels), weights, allow_unused=True
        )
        pairs = [(w.grad, r) for w, r in zip(weights, found, strict=True) if r is not None]
        along = sum(float((g * r).sum()) for g, r in pairs)
        length = sum(float(r.square().sum()) for _, r in pairs)
        if along < 0 < length:
            for gradient, reference in pairs:
                gradient -= along / length * reference


@STRATEGIES.register("agem", options=AgemOptions)
def agem(setup: Setup) -> ResumableLearner:
    """Averaged gradient episodic memory; options mem_size, sample_size and head."""
    options = read_options(setup.options, AgemOptions)
    exemplars = Exemplars(options.mem_size, "task")
    plugin = ProjectionPlugin(setup, exemplars, options.sample_size)
    return ResumableLearner(setup, [plugin], exemplars, head=options.head)
