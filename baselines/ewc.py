"""Elastic weight consolidation: weights that mattered to older tasks are held by springs.

Paper: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks". One
quadratic for every older task (Avalanche's mode "separate"), with importances by Avalanche's
EWCPlugin. Scales and shifts of batch norm are held too; of its running statistics, which no penalty
reaches, each task keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.training.plugins import EWCPlugin
from torch import Tensor
from torch.utils.data import TensorDataset

from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.continual.loading import Pixels
from firefly_cl.errors import ConfigurationError
from firefly_cl.scenarios import images_of, normalise


@dataclass(frozen=True)
class EwcOptions:
    """The weight of the penalty; whose batch-norm statistics a task is evaluated with.

    1000 was the best of 0, 1, 10, ..., 10000 on validation images of split-digits (two seeds; mlp
    and resnet9 of an eighth of the width, 20 epochs: 0.989 and 0.951 against 0.931 and 0.875 at 0).
    Statistics of each "task" against "shared" ones: 0.528 against 0.384 on validation images of
    three superclasses of CIFAR-100 (one seed, resnet9 of an eighth of the width, 6 epochs), 0.952
    against 0.951 on split-digits.
    """

    ewc_lambda: float = 1000.0
    norm: str = "task"

    def __post_init__(self) -> None:
        """Check it."""
        if not 0 <= self.ewc_lambda < float("inf"):
            raise ConfigurationError(f"ewc_lambda is {self.ewc_lambda}; it must be 0 or more")


class ConsolidationPlugin(EWCPlugin):
    """Avalanche's separate penalty, its sum over tasks kept as one quadratic.

    lambda * sum_t sum_i F_ti (w_i - w_ti)^2 = lambda * (sum_i A_i (w_i - m_i)^2 + c) with
    A = sum_t F_t, m = sum_t F_t w_t / A and c = sum_i (sum_t F_t w_t^2 - A m^2): the same
    function of w at a cost that does not grow with the tasks. Heads of older tasks are left
    out: no later task changes them.

    A spring so stiff that a step of size `learning_rate` would overshoot its centre, and soon
    diverge, is softened: 2 lambda A <= 1 / (2 learning_rate). None leaves every spring as it is.
    """

    def __init__(
        self,
        ewc_lambda: float,
        pixels: Pixels,
        learning_rate: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(ewc_lambda, mode="separate")
        self.device = device
        self.pixels = pixels
        self.stiffest = float("inf")
        if learning_rate and ewc_lambda:
            self.stiffest = 1 / (4 * ewc_lambda * learning_rate)
        self.stiffness: dict[str, Tensor] = {}
        self.centre: dict[str, Tensor] = {}
        self.offset = 0.0

    def penalty(self, model: torch.nn.Module) -> Tensor:
        """The sum over tasks, without lambda."""
        total = torch.tensor(self.offset, device=next(model.parameters()).device)
        for name, weights in model.named_parameters():
            if name in self.stiffness:
                springs = self.stiffness[name].clamp(max=self.stiffest)
                total = total + (springs * (weights - self.centre[name]).square()).sum()
        return total

    def before_backward(self, strategy: Any, **kwargs: object) -> None:
        """Add the penalty to the loss."""
        if self.stiffness:
            strategy.loss += self.ewc_lambda * self.penalty(strategy.model)

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Measure the importances on the task just learnt and add its quadratic."""
        images = images_of(strategy.experience.dataset)
        tasks = (
            torch.full_like(images.labels, images.task) if images.tasks is None else images.tasks
        )
        inputs = normalise(images.images, self.pixels.mean, self.pixels.std)
        importances = self.compute_importances(
            strategy.model,
            strategy._criterion,
            strategy.optimizer,
            TensorDataset(inputs, images.labels, tasks),
            strategy.device,
            strategy.train_mb_size,
        )
        strategy.optimizer.zero_grad()
        self.add(
            {name: importance.data for name, importance in importances.items()}, strategy.model
        )

    @torch.no_grad()
    def add(self, importances: dict[str, Tensor], model: torch.nn.Module) -> None:
        """Add sum_i F_i (w_i - w*_i)^2 with w* the weights that `model` has now."""
        for name, weights in model.named_parameters():
            if ".heads." in f".{name}":
                continue
            new = importances[name]
            old = self.stiffness.get(name, torch.zeros_like(new))
            centre = self.centre.get(name, weights.clone())
            total = old + new
            share = torch.where(total > 0, new / total, 0.0)
            self.offset += float((old * share * (weights - centre).square()).sum())
            self.centre[name] = torch.lerp(centre, weights, share)
            self.stiffness[name] = total

    def nbytes(self) -> int:
        """Bytes of stiffness, centres and the offset."""
        return sum(values.nbytes for values in self.state().values())

    def state(self) -> dict[str, Tensor]:
        """Stiffness and centres by parameter, and the offset (float64)."""
        return {
            **{f"stiffness {name}": values for name, values in self.stiffness.items()},
            **{f"centre {name}": values for name, values in self.centre.items()},
            "offset": torch.tensor(self.offset, dtype=torch.float64),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        named = [name.partition(" ") for name in state if name != "offset"]
        parts = {
            kind: {
                name: state[f"{kind} {name}"].to(self.device)
                for word, _, name in named
                if word == kind
            }
            for kind in ("stiffness", "centre")
        }
        if parts["stiffness"].keys() != parts["centre"].keys():
            raise ValueError("springs without a centre")
        self.stiffness, self.centre = parts["stiffness"], parts["centre"]
        self.offset = float(state["offset"])


@STRATEGIES.register("ewc")
def ewc(setup: Setup) -> ResumableLearner:
    """Elastic weight consolidation; option ewc_lambda."""
    options = read_options(setup.options, EwcOptions)
    scenario = setup.scenario
    plugin = ConsolidationPlugin(
        options.ewc_lambda,
        Pixels(scenario.mean, scenario.std, scenario.flip),
        setup.recipe.learning_rate,
        setup.device,
    )
    return ResumableLearner(setup, [plugin], plugin, norm=options.norm)
