"""One way of training for every Avalanche strategy: data path, schedule, mixup, precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data_loader import (
    ReplayDataLoader,
    SingleDatasetDataLoader,
    TaskBalancedDataLoader,
)
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.utils.data import DataLoader

from firefly_cl.continual.criterion import TrainingCriterion
from firefly_cl.continual.learner import EVALUATION_BATCH, Progress, silent
from firefly_cl.continual.loading import Pixels, RehearsalBatches
from firefly_cl.continual.mixing import cutmix, mixup
from firefly_cl.continual.precision import Precision, lay_out
from firefly_cl.continual.recipe import Recipe
from firefly_cl.continual.snapshot import Snapshots, State
from firefly_cl.continual.training_state import restore_training, training_state
from firefly_cl.continual.views import Views
from firefly_cl.errors import DataError, DivergenceError, FileError
from firefly_cl.scenarios import Batches, Images, images_of, normalise


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that `recipe` names; the schedule sets its rate before every step."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


class TrainingPlugin(SupervisedPlugin):
    """Trains any SupervisedTemplate by a recipe; put it last among the plugins.

    It replaces Avalanche's own loaders (also the one of ReplayPlugin) by in-memory batches with
    the recipe's augmentation, sets the number of epochs and the learning rate of every step,
    forgets the optimizer's state where an experience begins, mixes images, runs forward and
    loss of training steps under autocast, and tells `progress` after every epoch. Evaluation is
    in float32 without augmentation, by the recipe's views of an image. Loaders of unknown kinds,
    and those whose items hold more than image, label and task, stay as they are; uint8 batches of
    theirs are normalised.

    `pixels` None takes the images of the stream for inputs already (uint8 is divided by 255).

    A model may have a method `heads()` -> (parameters of its heads, features that a head reads);
    they learn at the recipe's rate for heads.

    `snapshots` says when the training of a task is kept, and from where it goes on; it is not
    kept where a plugin of the strategy is no `WithinTask`.

    Raises DivergenceError at a loss that is NaN or infinite, before it reaches the weights, and
    DataError at an experience without two images or with pixels that are not finite.
    """

    def __init__(
        self,
        recipe: Recipe,
        pixels: Pixels | None = None,
        *,
        seed: int = 0,
        tasks: int | None = None,
        progress: Callable[[Progress], None] = silent,
        units: Callable[[], int | None] = lambda: None,
        snapshots: Snapshots | None = None,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.pixels = pixels
        self.seed = seed
        self.tasks = tasks
        self.progress = progress
        self.units = units
        self.snapshots = snapshots or Snapshots()
        self.phase = "train"
        self.step = 0
        self.steps = 1
        self.task = 0
        self._epoch = 0
        self._losses: list[float] = []
        self._right = 0
        self._seen = 0
        self._mixing = np.random.default_rng(seed)

    def start_schedule(self, steps: int) -> None:
        """Begin the learning-rate schedule anew, `steps` steps long."""
        self.step, self.steps = 0, steps

    def before_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Prepare loader, epochs, schedule, optimizer, criterion and precision."""
        self.task = _number(strategy)
        precision = Precision.of(self.recipe, strategy.device).safe_for(strategy.model)
        strategy.dataloader = self._training_loader(strategy, precision)
        strategy.train_epochs = self.recipe.epochs
        self.start_schedule(self.recipe.epochs * len(strategy.dataloader))
        strategy.optimizer.state.clear()
        self._split_heads(strategy)
        self._mixing = np.random.default_rng([self.seed, self.task])
        if not isinstance(strategy._criterion, TrainingCriterion):
            strategy._criterion = TrainingCriterion(
                strategy._criterion, self.recipe.label_smoothing
            )
        self._rest(strategy)
        lay_out(strategy.model, channels_last=precision.channels_last)
        strategy.__dict__.pop("forward", None)
        plain: Callable[[], Tensor] = strategy.forward

        def forward() -> Tensor:
            if not strategy.is_training:
                return plain()
            with precision.forward(strategy.device):
                return plain()

        strategy.forward = forward
        self._epoch = 0
        snapshot = self.snapshots.begin(self.task)
        if snapshot is not None:
            try:
                restore_training(strategy, snapshot)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise FileError(
                    f"the snapshot of task {self.task} does not fit it ({_first_line(error)}): "
                    "run the cell again with --overwrite"
                ) from error
            strategy.train_epochs -= self._epoch
        self.tell()

    def within_task(self, strategy: Any) -> State | None:
        """Schedule, mixing and the order of images; None for a loader that is not ours."""
        loader = strategy.dataloader
        if isinstance(loader, RehearsalBatches):  # its parts share one generator
            loader = loader.current
        if not isinstance(loader, Batches):
            return None
        return {"order": loader.generator.get_state()}, {
            "epoch": self._epoch,
            "step": self.step,
            "steps": self.steps,
            "mixing": self._mixing.bit_generator.state,
        }

    def go_on(self, strategy: Any, state: State) -> None:
        """Take up what `within_task` told."""
        tensors, told = state
        loader = strategy.dataloader
        if isinstance(loader, RehearsalBatches):
            loader = loader.current
        loader.generator.set_state(tensors["order"])
        self._epoch, self.step, self.steps = told["epoch"], told["step"], told["steps"]
        self._mixing.bit_generator.state = told["mixing"]

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Leave the strategy as it was: plain forward, one group, plain memory layout."""
        self._rest(strategy)
        first, *others = strategy.optimizer.param_groups
        for group in [group for group in others if group.get("heads")]:
            first["params"] += group["params"]
            strategy.optimizer.param_groups.remove(group)
        strategy.__dict__.pop("forward", None)
        lay_out(strategy.model, channels_last=False)
        strategy.train_epochs = self.recipe.epochs

    def before_training_epoch(self, strategy: Any, **kwargs: object) -> None:
        """Begin to average the loss."""
        self._losses, self._right, self._seen = [], 0, 0

    def after_training_epoch(self, strategy: Any, **kwargs: object) -> None:
        """Tell how the epoch went: mean loss, and accuracy on the training batches as seen."""
        self._epoch += 1
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        self.tell(loss, self._right / self._seen if self._seen else None)
        if self._epoch < self.recipe.epochs and self.snapshots.due():
            state = training_state(strategy)
            if state is not None:
                self.snapshots.take(self.task, self._epoch, state)

    def before_training_iteration(self, strategy: Any, **kwargs: object) -> None:
        """Set the learning rate of this step; a group's `rate_scale` multiplies it."""
        strategy.mbatch[0] = self.inputs(strategy.mbatch[0])
        rate = self.recipe.rate(self.step, self.steps)
        for group in strategy.optimizer.param_groups:
            group["lr"] = rate * group.get("rate_scale", 1.0)

    def before_forward(self, strategy: Any, **kwargs: object) -> None:
        """Mix the images."""
        criterion: TrainingCriterion = strategy._criterion
        criterion.active, criterion.mixture = True, None
        batch, recipe = strategy.mbatch, self.recipe
        x, y, tasks = batch[0], batch[1], batch[-1]
        if recipe.cutmix and self._mixing.random() < recipe.cutmix and x.dim() == 4:
            batch[0], criterion.mixture = cutmix(x, y, tasks, self._mixing)
        elif recipe.mixup:
            batch[0], criterion.mixture = mixup(x, y, tasks, recipe.mixup, self._mixing)

    def before_backward(self, strategy: Any, **kwargs: object) -> None:
        """Refuse a loss that is not finite."""
        mixed = strategy._criterion.mixture is not None
        self._rest(strategy)
        loss = float(strategy.loss.detach())
        if loss - loss != 0:  # NaN and both infinities
            raise DivergenceError(
                f"the loss became {loss} in task {self.task}, epoch {self._epoch + 1}, "
                f"step {self.step + 1} of {self.steps}: lower the learning rate "
                f"(now at most {self.recipe.learning_rate:g}) or look for damaged images"
            )
        self._losses.append(loss)
        output = strategy.mb_output
        if not mixed and isinstance(output, Tensor):
            hits = output.detach().argmax(1) == strategy.mb_y
            self._right += int(hits.sum())
            self._seen += len(hits)

    def after_training_iteration(self, strategy: Any, **kwargs: object) -> None:
        """Count the step."""
        self.step += 1

    def before_eval_exp(self, strategy: Any, **kwargs: object) -> None:
        """Evaluate on batches from memory, unaugmented and in order."""
        self._rest(strategy)  # where training was broken off inside a step
        dataset = strategy.adapted_dataset
        known = isinstance(strategy.dataloader, DataLoader | SingleDatasetDataLoader)
        if known and _is_plain(dataset):
            strategy.dataloader = self.plain_batches(dataset, strategy.device)

    def plain_batches(self, dataset: Any, device: torch.device) -> Batches:
        """A dataset as inputs, unaugmented and in order."""
        return self._batches(images_of(dataset), EVALUATION_BATCH, device)

    def before_eval_iteration(self, strategy: Any, **kwargs: object) -> None:
        """Normalise what another loader has left as uint8."""
        strategy.mbatch[0] = self.inputs(strategy.mbatch[0])

    def after_eval_forward(self, strategy: Any, **kwargs: object) -> None:
        """Answer by the mean over the recipe's views of the images."""
        inputs, pixels = strategy.mbatch[0], self.pixels
        views = Views(self.mirrored, self.recipe.shifted)
        if len(views) == 1 or inputs.dim() != 4:
            return
        pixels = pixels or Pixels.as_they_are(inputs.shape[1])
        every = views.fit(inputs.shape[1:]).of(inputs, pixels.mean, pixels.std)
        laterals, total = getattr(strategy.model, "laterals", None), 0.0
        if laterals is None:  # the image itself has been answered
            total, _ = strategy.mb_output, next(every)
        for counted, some in views.shares(every, laterals):
            with counted:
                for view in some:
                    strategy.mbatch[0] = view
                    total = total + strategy.forward()
        strategy.mbatch[0], strategy.mb_output = inputs, total / len(views)

    @property
    def mirrored(self) -> bool:
        """Whether images are answered by their mirror images as well, where classes bear it."""
        return self.recipe.mirrored and (self.pixels is None or self.pixels.flip)

    def inputs(self, images: Tensor) -> Tensor:
        """Images of any loader as the model gets them: normalised where they are uint8."""
        if images.dtype != torch.uint8:
            return images
        pixels = self.pixels or Pixels.as_they_are(images.shape[1])
        return normalise(images, pixels.mean, pixels.std)

    def _batches(
        self,
        images: Images,
        batch_size: int,
        device: torch.device,
        generator: torch.Generator | None = None,
        channels_last: bool = False,
    ) -> Batches:
        pixels = self.pixels or Pixels.as_they_are(images.images.shape[1])
        if self.pixels is not None and images.images.is_floating_point():
            low, high = (float(end) for end in torch.aminmax(images.images))
            if low < -1e-3 or high > 1 + 1e-3:
                raise DataError(
                    f"pixels range from {low:.3g} to {high:.3g}; normalisation expects 0 to 1: "
                    "give the images as they were before, or TrainingPlugin no pixels"
                )
        augmentation = None
        if generator is not None:
            augmentation = self.recipe.augmentation
            if not pixels.flip:
                augmentation = dataclasses.replace(augmentation, flip=False)
        return Batches(
            images,
            batch_size,
            mean=pixels.mean,
            std=pixels.std,
            augmentation=augmentation,
            shuffle=generator is not None,
            generator=generator or torch.Generator(),
            device=device,
            channels_last=channels_last,
        )

    def _training_loader(self, strategy: Any, precision: Precision) -> Any:
        loader = strategy.dataloader
        if not _is_plain(strategy.adapted_dataset):
            return loader
        if isinstance(loader, ReplayDataLoader):
            if not all(_is_plain(dataset) for dataset in loader.datasets):
                return loader
            pairs = list(zip(loader.datasets, loader.batch_sizes, strict=True))
            pairs[0] = (pairs[0][0], self.recipe.batch_size)
        elif isinstance(loader, DataLoader | TaskBalancedDataLoader):
            pairs = [(strategy.adapted_dataset, self.recipe.batch_size)]
        else:
            return loader
        generator = torch.Generator().manual_seed(experience_seed(self.seed, self.task))
        splits = [(images_of(dataset), size) for dataset, size in pairs]
        if len(splits[0][0]) < 2:
            raise DataError(
                f"task {self.task} has one training image: batch norm needs at least two"
            )
        device = strategy.device
        current, *memories = (
            self._batches(images, size, device, generator, precision.channels_last)
            for images, size in splits
        )
        return RehearsalBatches(current, memories) if memories else current

    def _split_heads(self, strategy: Any) -> None:
        """Give heads a group of their own, with their own rate, while the experience lasts."""
        heads = getattr(strategy.model, "heads", None)
        if heads is None:
            return
        parameters, features = heads()
        chosen = {id(parameter) for parameter in parameters}
        first = strategy.optimizer.param_groups[0]
        moved = [p for p in first["params"] if id(p) in chosen]
        first["params"] = [p for p in first["params"] if id(p) not in chosen]
        scale = min(1.0, self.recipe.head_rate / max(features, 1)) * first.get("rate_scale", 1.0)
        settings = {key: value for key, value in first.items() if key != "params"}
        strategy.optimizer.add_param_group(
            {**settings, "params": moved, "rate_scale": scale, "heads": True}
        )

    def _rest(self, strategy: Any) -> None:
        if isinstance(strategy._criterion, TrainingCriterion):
            strategy._criterion.active, strategy._criterion.mixture = False, None

    def tell(
        self,
        loss: float | None = None,
        accuracy: float | None = None,
        *,
        phase: str | None = None,
        epoch: int | None = None,
    ) -> None:
        """Tell `progress` how far the task has come, by default in its training."""
        tasks = self.task + 1 if self.tasks is None else self.tasks
        self.progress(
            Progress(
                self.task,
                tasks,
                phase or self.phase,
                self._epoch if epoch is None else epoch,
                self.recipe.epochs,
                loss,
                accuracy,
                self.units(),
            )
        )


def training_of(strategy: Any) -> TrainingPlugin | None:
    """The plugin that trains a strategy by a recipe, where it has one."""
    return next((p for p in strategy.plugins if isinstance(p, TrainingPlugin)), None)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _is_plain(dataset: Any) -> bool:
    """Whether items are (image, label[, task]); others carry what images alone cannot."""
    return len(dataset) == 0 or len(dataset[0]) <= 3


def _number(strategy: Any) -> int:
    number = getattr(strategy.experience, "current_experience", None)
    return strategy.clock.train_exp_counter if number is None else int(number)


def experience_seed(seed: int, task: int) -> int:
    """A seed of its own for each experience of a run."""
    return int(np.random.SeedSequence([seed, task]).generate_state(1, np.uint64)[0] >> 1)
