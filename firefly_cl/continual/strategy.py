"""The firefly strategy: an Avalanche template whose network grows with every task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from firefly_cl.continual.growing import FireflyPlugin
from firefly_cl.continual.loading import Pixels
from firefly_cl.continual.model import FireflyModel
from firefly_cl.continual.plan import Plan, require_one_plan
from firefly_cl.continual.recipe import Recipe
from firefly_cl.continual.training import TrainingPlugin, make_optimizer
from firefly_cl.errors import ConfigurationError
from firefly_cl.network import floats


class FireflyStrategy(SupervisedTemplate):
    """Grows one network task by task and forgets nothing.

    Paper: Wu, Liu, Stone, Liu 2020, arXiv 2102.08574; freezing by row blocks as in
    docs/method.md.

    model: a plain torch.fx-traceable module (with `example_input`, one batch of inputs), a
    FireflyNet, or a FireflyModel, whose plan is then that of the strategy. With a `recipe`, tasks
    are trained by it: batches in memory with its augmentation (`pixels` says how they become
    inputs; a random transform of the dataset's own is drawn once, when images are brought there),
    its schedule, precision and number of epochs; `optimizer`, `train_mb_size` and
    `train_epochs` are then not needed. Without one, everything is Avalanche's own. `budget`: floats
    that the network may hold, shared by `n_tasks` tasks (those of the stream unless told). Every
    experience needs a task label of its own.

    Raises UnsupportedOperation for a model that cannot grow, ConfigurationError, and DataError
    at experiences that cannot be learnt.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        example_input: Tensor | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        plan: Plan | None = None,
        recipe: Recipe | None = None,
        pixels: Pixels | None = None,
        budget: int | None = None,
        n_tasks: int | None = None,
        seed: int = 0,
        train_mb_size: int = 64,
        train_epochs: int = 1,
        eval_mb_size: int = 256,
        device: torch.device | str = "cpu",
        plugins: Sequence[SupervisedPlugin] = (),
        training: TrainingPlugin | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = default_evaluator,
        eval_every: int = -1,
        **kwargs: Any,
    ) -> None:
        plan = _plan_of(model, plan)
        wrapped = FireflyModel.wrap(model, example_input, plan, seed).to(device)
        begun = any(task.frozen for task in wrapped.net.tasks)
        if budget is not None and not begun and floats(wrapped.net) > budget:
            raise ConfigurationError(
                f"the network starts with {floats(wrapped.net)} floats, over the budget of "
                f"{budget}: start narrower or give a larger budget"
            )
        if training is None and recipe is not None:
            training = TrainingPlugin(recipe, pixels, seed=seed)
        if training is not None:
            recipe = training.recipe
        if optimizer is not None and len(optimizer.param_groups) > 1:
            raise ConfigurationError(
                f"the optimizer has {len(optimizer.param_groups)} groups of parameters, and new "
                "units belong to none of them: give it one group"
            )
        if optimizer is None:
            # Where all tasks are frozen nothing trains yet, but an optimizer wants something.
            parameters = wrapped.net.trainable() or list(wrapped.net.parameters())
            optimizer = make_optimizer(recipe or Recipe(), parameters)
        self.firefly = FireflyPlugin(plan, budget, seed, n_tasks)
        own = [self.firefly] if training is None else [self.firefly, training]
        super().__init__(
            model=wrapped,
            optimizer=optimizer,
            criterion=criterion or nn.CrossEntropyLoss(),
            train_mb_size=train_mb_size if recipe is None else recipe.batch_size,
            train_epochs=train_epochs if recipe is None else recipe.epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=[*plugins, *own],
            evaluator=evaluator,
            eval_every=eval_every,
            **kwargs,
        )

    @property
    def net(self) -> Any:
        """The growing network."""
        return self.model.net


def _plan_of(model: nn.Module, plan: Plan | None) -> Plan:
    """The one plan of a model and a strategy."""
    if not isinstance(model, FireflyModel):
        return plan or Plan()
    if plan is not None:
        require_one_plan(model.plan, plan)
    return model.plan
