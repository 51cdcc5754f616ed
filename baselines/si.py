"""Synaptic intelligence: weights whose path brought the loss down are held by springs.

Paper: Zenke, Poole, Ganguli 2017, "Continual Learning Through Synaptic Intelligence", arXiv
1703.04200. A weight's importance for a task is its share of the fall of the loss along the path
of training (eq. 3 to 5). As in the authors' code the path counts the gradient of the loss without
the penalty, and negative importances are 0. The loss is the one that trains: smoothed, and that
of both labels where images are mixed. Avalanche's plugin counts the penalty's gradient too and
cuts importances off at 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.baselines.springs import Springs, shared_weights
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.continual.snapshot import State
from firefly_cl.errors import ConfigurationError
from firefly_cl.search_space import Choice, Range, searched


@dataclass(frozen=True)
class SiOptions:
    """Strength c, damping xi, and whose batch-norm statistics a task is evaluated with.

    c = 1 and xi = 0.001 are the paper's for split MNIST; "task" is EWC's, for the same reason.
    """

    c: float = searched(1.0, Range(0.01, 100.0, log=True))
    xi: float = 1e-3
    norm: str = searched("task", Choice(("task", "shared")))

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.c < float("inf"):
            raise ConfigurationError(f"c is {self.c}; it must be 0 or more")
        if not 0 < self.xi < float("inf"):
            raise ConfigurationError(f"xi is {self.xi}; it must be above 0")


class PathPlugin(SupervisedPlugin):
    """Follows every weight through a task: path = -sum over steps of gradient * step.

    The importance path / ((w_end - w_start)^2 + xi) is added to the spring, which is centred on
    the weights of the task's end. Paths and starts are of one task alone.
    """

    def __init__(self, springs: Springs, xi: float) -> None:
        super().__init__()
        self.springs = springs
        self.xi = xi
        self.start: dict[str, Tensor] = {}
        self.path: dict[str, Tensor] = {}
        self._step: dict[str, tuple[Tensor, Tensor]] = {}

    def before_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Begin all paths here."""
        weights = dict(shared_weights(strategy.model))
        self.start = {name: values.detach().clone() for name, values in weights.items()}
        self.path = {name: torch.zeros_like(values) for name, values in self.start.items()}

    def within_task(self, strategy: Any) -> State:
        """Paths and where they began."""
        parts = (("start", self.start), ("path", self.path))
        return {f"{part} {name}": v for part, held in parts for name, v in held.items()}, {}

    def go_on(self, strategy: Any, state: State) -> None:
        """Take up what `within_task` told."""
        device = strategy.device
        self.start = {name: state[0][f"start {name}"].to(device) for name in self.start}
        self.path = {name: state[0][f"path {name}"].to(device) for name in self.path}

    def after_backward(self, strategy: Any, **kwargs: object) -> None:
        """Remember weights and gradients of the loss alone, then add the penalty's gradient."""
        self._step = {
            name: (weights.detach().clone(), weights.grad.clone())
            for name, weights in shared_weights(strategy.model)
            if weights.grad is not None
        }
        self.springs.pull(strategy.model)

    @torch.no_grad()
    def after_update(self, strategy: Any, **kwargs: object) -> None:
        """Count the step."""
        for name, weights in shared_weights(strategy.model):
            if name in self._step:
                before, gradient = self._step[name]
                self.path[name] -= gradient * (weights - before)
        self._step = {}

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Turn paths into importances and move the springs' centres here."""
        importances = {
            name: self.path[name].clamp(min=0) / ((w - self.start[name]).square() + self.xi)
            for name, w in shared_weights(strategy.model)
        }
        self.springs.replace(importances, strategy.model, kept=1.0)
        self.start, self.path = {}, {}


@STRATEGIES.register("si", options=SiOptions)
def si(setup: Setup) -> ResumableLearner:
    """Synaptic intelligence; options c, xi and norm."""
    options = read_options(setup.options, SiOptions)
    springs = Springs(options.c, setup.recipe.learning_rate, setup.device)
    plugin = PathPlugin(springs, options.xi)
    return ResumableLearner(setup, [plugin], springs, norm=options.norm)
