"""Gradient episodic memory: no step may raise the loss of any older task's images.

Paper: Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory for Continual Learning", arXiv
1706.08840, eq. 8 to 11. The step's gradient moves, as little as can be, to where it has no
negative product with the gradient of any older task on remembered images; both are those of the
weights that the step moves, so without older heads. Avalanche's plugin needs a solver of quadratic
programs that it does not bring, and raw pixels; here the dual program is least squares with
non-negative unknowns. A step costs one more batch for every older task. Remembered images are
augmented as new ones are, and never mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from firefly_cl.baselines.exemplars import Exemplars, RehearsalPlugin, check_mem_size
from firefly_cl.baselines.multihead import HeadOptions
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.errors import ConfigurationError
from firefly_cl.search_space import Range, searched


@dataclass(frozen=True)
class GemOptions(HeadOptions):
    """Images kept in total, how many of each task make its reference, and the paper's gamma.

    memory_strength = 0.5 is the paper's: each violated constraint is overshot by that share of
    the task's own gradient. The paper takes all of a task's remembered images in every step.
    `head`: see HeadOptions.
    """

    mem_size: int = 2000
    sample_size: int = 64
    memory_strength: float = searched(0.5, Range(0.0, 1.0))

    def __post_init__(self) -> None:
        """Check all."""
        super().__post_init__()
        check_mem_size(self.mem_size)
        if self.sample_size < 2:
            raise ConfigurationError(f"sample_size is {self.sample_size}: draw at least 2 images")
        if not 0 <= self.memory_strength < float("inf"):
            raise ConfigurationError(
                f"memory_strength is {self.memory_strength}; it must be 0 or more"
            )


class ConstraintPlugin(RehearsalPlugin):
    """Projects the gradient onto where no older task's loss rises, to first order."""

    def __init__(self, setup: Setup, exemplars: Exemplars, options: GemOptions) -> None:
        super().__init__(setup, exemplars, options.sample_size)
        self.memory_strength = options.memory_strength
        self._by_task: list[Iterator[tuple[Tensor, Tensor]]] = []
        self._slopes: list[Sequence[Tensor | None]] = []

    def before_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Begin to draw batches of every older task."""
        now = strategy.experience.current_experience
        held = self.exemplars.images
        tasks = [] if held is None else torch.unique(held.task_of_each()).tolist()
        self._by_task = [
            self.exemplars.batches(self.setup, now, self.batch_size, of=task) for task in tasks
        ]

    def before_training_iteration(self, strategy: Any, **kwargs: object) -> None:
        """Take the slopes of older tasks: before the new images, as the authors do.

        What runs last has most weight in the statistics of batch norm.
        """
        weights = list(strategy.model.parameters())
        self._slopes = []
        for batches in self._by_task:
            logits, labels, _ = self.recall_from(batches, strategy)
            loss = strategy._criterion.unmixed(logits, labels)
            self._slopes.append(torch.autograd.grad(loss, weights, allow_unused=True))

    def after_backward(self, strategy: Any, **kwargs: object) -> None:
        """Project the gradients of the step."""
        if not self._slopes:
            return
        every = list(strategy.model.parameters())
        moved_at = [i for i, w in enumerate(every) if w.grad is not None]
        weights = [every[i] for i in moved_at]
        references = [_flat(weights, [slopes[i] for i in moved_at]) for slopes in self._slopes]
        gradient = _flat(weights, [w.grad for w in weights])
        moved = project(gradient, torch.stack(references), self.memory_strength)
        for w, part in zip(weights, torch.split(moved, [w.numel() for w in weights]), strict=True):
            w.grad.copy_(part.view_as(w))

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Remember images of the task just learnt."""
        self._by_task, self._slopes = [], []
        super().after_training_exp(strategy)


def project(gradient: Tensor, references: Tensor, margin: float = 0.0) -> Tensor:
    """`gradient` + references' v, with v >= margin where a product with a reference is negative.

    gradient: (P,); references: (T, P). With margin 0 the nearest vector that has no negative
    product with any reference; without a negative product the gradient itself.
    """
    products = (references @ gradient).double().cpu().numpy()
    if (products >= 0).all():
        return gradient
    gram = (references @ references.T).double().cpu().numpy()
    gram += 1e-6 * gram.diagonal().mean() * np.eye(len(gram))  # references may be parallel
    # The dual, min v'Pv / 2 + p'v over v >= margin, as |L'u + L^-1 (p + P margin)|^2 over u >= 0.
    lower = np.linalg.cholesky(gram)
    target = -np.linalg.solve(lower, products + margin * gram.sum(1))
    above, _ = nnls(lower.T, target)
    return gradient + torch.from_numpy(margin + above).to(references) @ references


def _flat(weights: list[Tensor], gradients: Any) -> Tensor:
    return torch.cat(
        [
            (torch.zeros_like(w) if g is None else g).flatten()
            for w, g in zip(weights, gradients, strict=True)
        ]
    )


@STRATEGIES.register("gem", options=GemOptions)
def gem(setup: Setup) -> ResumableLearner:
    """Gradient episodic memory; options mem_size, sample_size, memory_strength and head."""
    options = read_options(setup.options, GemOptions)
    tasks = len(setup.scenario.tasks)
    if options.mem_size < 2 * tasks:
        raise ConfigurationError(
            f"mem_size is {options.mem_size}: keep at least 2 images of each of the {tasks} tasks"
        )
    exemplars = Exemplars(options.mem_size, "task")
    plugin = ConstraintPlugin(setup, exemplars, options)
    return ResumableLearner(setup, [plugin], exemplars, head=options.head)
