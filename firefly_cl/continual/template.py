"""What growth reads of a template of Avalanche: its model, loss, precision and optimizer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from firefly_cl.continual.model import FireflyModel
from firefly_cl.continual.precision import Precision
from firefly_cl.continual.training import training_of
from firefly_cl.errors import ConfigurationError
from firefly_cl.growth.criterion import Autocast, Loss


def loss_of(strategy: Any) -> Loss:
    """The strategy's criterion on one of its batches, whose images are as in training."""
    training = training_of(strategy)

    def loss(model: Any, batch: list[Tensor]) -> Tensor:
        x, y = batch[0].to(strategy.device), batch[1].to(strategy.device)
        if training is not None:
            x = training.inputs(x)
        value: Tensor = strategy._criterion(model(x).float(), y)
        return value

    return loss


def autocast_of(strategy: Any) -> Autocast:
    """The precision of the recipe, where there is one."""
    training = training_of(strategy)

    def autocast() -> AbstractContextManager[Any]:
        if training is None:
            return nullcontext()
        return Precision.of(training.recipe, strategy.device).forward(strategy.device)

    return autocast


def model_of(strategy: Any) -> FireflyModel:
    """The strategy's model; raises ConfigurationError where it is none that grows."""
    model = strategy.model
    if not isinstance(model, FireflyModel):
        raise ConfigurationError(
            f"FireflyPlugin grows a FireflyModel, not a {type(model).__name__}: wrap the model "
            "with FireflyModel.wrap(model, example_input, plan)"
        )
    return model


def train_only(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], rate_scale: float
) -> None:
    """Leave `parameters` alone in the optimizer, in its first group, without old state.

    rate_scale: factor on the rate of the schedule, which `TrainingPlugin` sets at each step.
    """
    for group in optimizer.param_groups[1:]:
        group["params"] = []
    optimizer.param_groups[0].update(params=parameters, rate_scale=rate_scale)
    optimizer.state.clear()
