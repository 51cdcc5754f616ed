"""Remembered images: which are kept, their labels and logits, and batches drawn from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

from firefly_cl.baselines.multihead import pixels_of
from firefly_cl.continual.learner import Setup
from firefly_cl.continual.precision import Precision
from firefly_cl.continual.training import experience_seed
from firefly_cl.errors import ConfigurationError
from firefly_cl.scenarios import Batches, Images, images_of


class Exemplars:
    """At most `mem_size` images of all tasks so far, balanced over "task" or "class", or "none".

    Every image draws a number once and the largest of each group stay: a reservoir (Vitter
    1985). Groups are filled in turn, one image of each, so that what a small group leaves free
    goes to the others. A class is one of one task: labels begin from zero in each.
    """

    def __init__(self, mem_size: int, balance: str = "none") -> None:
        self.mem_size = mem_size
        self.balance = balance
        self.images: Images | None = None
        self.logits: Tensor | None = None
        self._draws = torch.zeros(0)

    def __len__(self) -> int:
        return 0 if self.images is None else len(self.images)

    def add(
        self, images: Images, logits: Tensor | None = None, draws: Tensor | None = None
    ) -> None:
        """Let images (with their logits (n, classes), if those are kept) into the memory.

        Without `draws` they are drawn from torch's global generator.
        """
        draws = torch.rand(len(images)) if draws is None else draws
        parts = [images.images, images.labels, images.task_of_each(), draws]
        if self.images is not None:
            held = (self.images.images, self.images.labels, self.images.task_of_each(), self._draws)
            parts = [torch.cat(pair) for pair in zip(held, parts, strict=True)]
        if logits is not None:
            logits = logits if self.logits is None else _stack(self.logits, logits)
        pixels, labels, tasks, draws = parts
        kept = self._chosen(labels, tasks, draws)
        self.images = Images(pixels[kept], labels[kept], -1, tasks[kept])
        self._draws = draws[kept]
        self.logits = None if logits is None else logits[kept]

    def _chosen(self, labels: Tensor, tasks: Tensor, draws: Tensor) -> Tensor:
        """Numbers of the images that stay, in their order."""
        group = {"none": torch.zeros_like(tasks), "task": tasks}.get(self.balance)
        if group is None:
            group = tasks * (int(labels.max()) + 1) + labels
        order = draws.argsort(descending=True, stable=True)
        rank = torch.empty_like(order)
        for value in torch.unique(group):
            members = order[group[order] == value]
            rank[members] = torch.arange(len(members))
        turns = order[rank[order].argsort(stable=True)]
        return turns[: self.mem_size].sort().values

    def batches(
        self, setup: Setup, task: int, batch_size: int, of: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless pairs (inputs augmented as the run's are, their numbers in the memory).

        Orders and augmentation are drawn by the seed of `setup` and the task that is learnt; `of`
        is the only task whose images are drawn.
        """
        assert self.images is not None
        recipe, pixels = setup.recipe, pixels_of(setup)
        augmentation = recipe.augmentation
        if not pixels.flip:
            augmentation = dataclasses.replace(augmentation, flip=False)
        tasks = self.images.task_of_each()
        numbers = torch.arange(len(self)) if of is None else (tasks == of).nonzero()[:, 0]
        seed = experience_seed(setup.seed, task) + 1 + (of or 0)
        batches = Batches(
            Images(self.images.images[numbers], numbers, -1, tasks[numbers]),
            batch_size,
            mean=pixels.mean,
            std=pixels.std,
            augmentation=augmentation,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            device=setup.device,
        )
        while True:
            for x, chosen, _ in batches:
                yield x, chosen.cpu()

    def nbytes(self) -> int:
        """Bytes of images as they are stored, labels, tasks and logits; the draws are left out."""
        return sum(values.nbytes for name, values in self.state().items() if name != "draws")

    def state(self) -> dict[str, Tensor]:
        """Images, labels, tasks, draws, and logits if they are kept."""
        if self.images is None:
            return {}
        state = {
            "images": self.images.images,
            "labels": self.images.labels,
            "tasks": self.images.task_of_each(),
            "draws": self._draws,
        }
        return state if self.logits is None else {**state, "logits": self.logits}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave; raises KeyError for another's."""
        self.images = Images(state["images"], state["labels"], -1, state["tasks"])
        self._draws, self.logits = state["draws"], state.get("logits")


class RehearsalPlugin(SupervisedPlugin):
    """Recalls a batch of exemplars in every step, and remembers images where a task ends.

    What is recalled is augmented but never mixed with other images, and runs through the network
    in a batch of its own (JoinedRehearsalPlugin: with the batch).
    """

    def __init__(self, setup: Setup, exemplars: Exemplars, batch_size: int | None = None) -> None:
        super().__init__()
        self.setup = setup
        self.exemplars = exemplars
        self.batch_size = batch_size or setup.recipe.batch_size
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None

    def before_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Begin to draw batches, if there is anything to recall."""
        if len(self.exemplars):
            task = strategy.experience.current_experience
            self._batches = self.exemplars.batches(self.setup, task, self.batch_size)

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Remember images of the task just learnt."""
        self._batches = None
        self.exemplars.add(images_of(strategy.experience.dataset))

    def recall(self, strategy: Any) -> tuple[Tensor, Tensor, Tensor] | None:
        """As `recall_from` the whole memory; None while it is empty."""
        return None if self._batches is None else self.recall_from(self._batches, strategy)

    def recall_from(
        self, batches: Iterator[tuple[Tensor, Tensor]], strategy: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the next batch in float32, its labels, and its numbers in the memory."""
        held, device = self.exemplars.images, strategy.device
        assert held is not None
        x, chosen = next(batches)
        tasks = held.task_of_each()[chosen].to(device)
        with Precision.of(self.setup.recipe, device).forward(device):
            logits = strategy.model(x, tasks)
        return logits.float(), held.labels[chosen].to(device), chosen


class JoinedRehearsalPlugin(RehearsalPlugin):
    """As RehearsalPlugin, but what is recalled runs through the network with the batch.

    So batch norm sees images of all tasks at once, as in replay, and not those of the new task and
    of older ones by turns. The images are joined where the model is called, after the mixing.
    """

    def __init__(self, setup: Setup, exemplars: Exemplars, batch_size: int | None = None) -> None:
        super().__init__(setup, exemplars, batch_size)
        self._due = False
        self._logits: Tensor | None = None
        self._chosen: Tensor | None = None
        self._hooks: list[Any] = []

    def before_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Begin to draw batches, if there is anything to recall, and to join them."""
        super().before_training_exp(strategy)
        self.join(strategy.model)

    def join(self, model: nn.Module) -> None:
        """Let a model's next call in training after `before_forward` take a batch along."""
        self.part()
        self._hooks = [
            model.register_forward_pre_hook(self._before_call),
            model.register_forward_hook(self._after_call),
        ]

    def part(self) -> None:
        """Let calls of the model be as they were."""
        self._due, self._logits, self._chosen = False, None, None
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def before_forward(self, strategy: Any, **kwargs: object) -> None:
        """Let the next call of the model take a batch along, if there is anything to recall."""
        self._due = self._batches is not None

    def _before_call(self, model: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._due or not model.training:
            return None
        held, self._due = self.exemplars.images, False
        assert self._batches is not None and held is not None
        (x, tasks), (recalled, self._chosen) = given, next(self._batches)
        tasks = torch.as_tensor(tasks, device=x.device).expand(len(x))
        older = held.task_of_each()[self._chosen].to(tasks)
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        both = torch.cat([x, recalled.to(x)]).contiguous(memory_format=layout)
        return both, torch.cat([tasks, older])

    def _after_call(self, model: nn.Module, given: tuple[Any, ...], logits: Tensor) -> Any:
        if self._chosen is None or self._logits is not None or not model.training:
            return None
        new = len(logits) - len(self._chosen)
        self._logits = logits[new:].float()
        return logits[:new]

    def recall(self, strategy: Any) -> tuple[Tensor, Tensor, Tensor] | None:
        """Logits of what the model's call took along, its labels and numbers; None without."""
        logits, chosen, held = self._logits, self._chosen, self.exemplars.images
        self._logits = self._chosen = None
        if logits is None or chosen is None or held is None:
            return None
        return logits, held.labels[chosen].to(logits.device), chosen

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Remember images of the task just learnt, and join no more."""
        self.part()
        super().after_training_exp(strategy)


def check_mem_size(mem_size: int) -> None:
    """Raise ConfigurationError for a memory from which no batch can be drawn."""
    if mem_size < 2:
        raise ConfigurationError(f"mem_size is {mem_size}: keep at least 2 images")


def _stack(held: Tensor, new: Tensor) -> Tensor:
    """Rows of both, the narrower filled up with minus infinity: no logit."""
    width = max(held.shape[1], new.shape[1])
    rows = [
        torch.nn.functional.pad(part, (0, width - part.shape[1]), value=-torch.inf)
        for part in (held, new)
    ]
    return torch.cat(rows)
