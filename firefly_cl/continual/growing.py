"""Growth, selection and pruning inside a task's training: when, on what data, when it stops."""

from __future__ import annotations

import itertools
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from firefly_cl.continual.distillation import Teacher
from firefly_cl.continual.held_out import HeldOut, plain_batches
from firefly_cl.continual.model import require_images
from firefly_cl.continual.nearest import probe_accuracies
from firefly_cl.continual.observer import Observer
from firefly_cl.continual.plan import COPYING, Plan, require_one_plan
from firefly_cl.continual.schedule import Schedule
from firefly_cl.continual.snapshot import State
from firefly_cl.continual.template import autocast_of, loss_of, model_of, train_only
from firefly_cl.continual.told_batches import ToldBatches
from firefly_cl.continual.training import experience_seed, training_of
from firefly_cl.errors import (
    BudgetTooSmall,
    ConfigurationError,
    NothingToGrow,
    NothingToPrune,
    NothingToSelect,
)
from firefly_cl.gates.pruning import GatePruning, Pruning
from firefly_cl.gates.selection import Selected
from firefly_cl.growth.budget import LATENCY, Budget, own_cost
from firefly_cl.growth.criterion import Growth, criterion_of
from firefly_cl.growth.latency import LatencyTable
from firefly_cl.network import FireflyNet, floats, flops
from firefly_cl.network.laterals import add_lateral_head
from firefly_cl.network.modes import evaluation
from firefly_cl.network.rebuild import Edit, migrate


class FireflyPlugin(SupervisedPlugin):
    """Firefly for people with a template of their own; its model must be a FireflyModel.

    It trains only the units of the newest task, grows them on a schedule, and freezes them
    when the experience ends, so that no later training can change what the task answers.
    Whether growth goes on is decided on images that are `held_out`.

    `latency` holds the timings that growth was charged by, where it is counted in latency.
    `events` tells what every growth step and every pruning did; `seconds` adds up per phase.
    `budget` is the number of floats that the network may hold (none: no limit); what is left of
    it is shared equally by the tasks that are left of `n_tasks` (none: of the stream). `observer`,
    where there is one, is shown each event as it happens.
    """

    def __init__(
        self,
        plan: Plan | None = None,
        budget: int | None = None,
        seed: int = 0,
        n_tasks: int | None = None,
    ) -> None:
        super().__init__()
        if n_tasks is not None and n_tasks < 1:
            raise ConfigurationError(f"n_tasks is {n_tasks}: give 1 or more, or leave it out")
        self.plan = plan or Plan()
        self.budget = budget
        self.n_tasks = n_tasks
        self.seed = seed
        self.held_out = HeldOut(self.plan.validation)
        self.criterion = criterion_of(self.plan.criterion, self.plan.settings)
        self.latency: LatencyTable | None = None
        if self.plan.cost == LATENCY:
            file = self.plan.latency
            self.latency = LatencyTable.load(Path(file)) if file else LatencyTable()
        self.events: list[dict[str, object]] = []
        self.observer: Observer | None = None
        self.seconds: dict[str, float] = defaultdict(float, grow=0.0)
        self._limit: int | None = None
        self._schedule = Schedule()
        self._seconds_before: dict[str, float] = {}
        self._obtained = 0.0
        self._teacher: Teacher | None = None

    # --- the phases of a task ---------------------------------------------------------------------

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: object) -> None:
        """Hold out validation images where the benchmark has no validation stream."""
        require_images(strategy.experience)  # loaders stumble over none
        self._schedule, self._teacher = Schedule(), None
        model = model_of(strategy)
        require_one_plan(model.plan, self.plan)
        model.total = self.budget
        self._limit = model.budget = self._share(strategy)
        self.held_out.choose(strategy, self._generator(strategy))
        model.source = self._nearest(strategy)
        if not self.held_out and self.plan.prune_at and self.plan.prune_tolerance:
            number = getattr(strategy.experience, "current_experience", "?")
            raise ConfigurationError(
                f"experience {number} has no validation images, which decide how far it is pruned: "
                "hold some out (validation above 0) or leave prune_tolerance empty"
            )

    def _nearest(self, strategy: Any) -> int | None:
        """The older task whose copies the new one begins with, where the plan leaves it to them."""
        net = model_of(strategy).net
        if self.plan.start != "nearest" or not any(task.frozen for task in net.tasks):
            return None
        found = probe_accuracies(net, plain_batches(strategy, strategy.adapted_dataset.eval()))
        source = max(range(len(found)), key=found.__getitem__)
        event = {"task": len(net.tasks), "epoch": 0, "source": source, "probe_accuracies": found}
        self._tell(event)
        return source

    def before_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Give the optimizer the newest task's parameters and nothing else."""
        net = model_of(strategy).net
        copied = net.current > 0 and self.plan.start in COPYING
        train_only(strategy.optimizer, net.trainable(), self.plan.copies_rate if copied else 1.0)
        training = training_of(strategy)  # which sets the strategy's epochs later than this
        epochs = strategy.train_epochs if training is None else training.recipe.epochs
        self._schedule = Schedule.of(self.plan, epochs, self._own(net))
        self._seconds_before = dict(self.seconds)
        self.held_out.load(strategy)

    def before_training_epoch(self, strategy: Any, **kwargs: object) -> None:
        """Begin the schedule of the learning rate anew after each change, if so planned."""
        training = training_of(strategy)
        epochs = self._schedule.round_length()
        if self.plan.restart and training is not None and epochs is not None:
            training.start_schedule(epochs * len(strategy.dataloader))

    def before_backward(self, strategy: Any, **kwargs: object) -> None:
        """Let what a pruned network was teach it, if so planned."""
        if self._teacher is not None:
            taught = self._teacher.logits(strategy.mb_x, autocast_of(strategy))
            strategy.loss = self.plan.distillation.loss(strategy.loss, strategy.mb_output, taught)

    def after_training_epoch(self, strategy: Any, **kwargs: object) -> None:
        """Select and prune if the schedule says so; grow if the validation loss says so too."""
        schedule = self._schedule
        schedule.epoch += 1
        if schedule.epoch in schedule.selections:
            self.select(strategy)
        if schedule.epoch in schedule.due:
            self._grow_or_stop(strategy)
        if schedule.epoch in schedule.prunings:
            self.prune(strategy)

    def _grow_or_stop(self, strategy: Any) -> None:
        started = time.perf_counter()
        net, last = model_of(strategy).net, self._schedule.last_loss
        loss, accuracy = self.held_out.measure(net)
        if loss is not None and last is not None and last - loss < self.plan.patience * last:
            self._schedule.due = set()
            return
        self._schedule.last_loss = loss
        event = self._event(net, loss, accuracy)
        growth = self.grow(strategy)
        self.seconds["grow"] += time.perf_counter() - started
        if growth is not None:
            told = {
                "kinds": growth.by_kind(),
                "spaces": growth.by_space(),
                "predicted_decrease": growth.gain,
                "obtained_decrease": self._obtained,
                "parameters": floats(net),
                "flops": flops(net),
                **self._timed(net),
            }
            self._tell({**event, **told}, scores=growth.scores())

    def _tell(
        self,
        event: dict[str, object],
        scores: Mapping[str, Sequence[float]] = MappingProxyType({}),
        gates: Sequence[Tensor] = (),
    ) -> None:
        self.events.append(event)
        if self.observer is not None:
            self.observer.edited(len(self.events) - 1, event, scores, gates)

    def _event(
        self, net: FireflyNet, loss: float | None, accuracy: float | None
    ) -> dict[str, object]:
        """What is told of the network before it changes."""
        return {
            "task": net.current,
            "epoch": self._schedule.epoch,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "parameters_before": floats(net),
            "flops_before": flops(net),
        }

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Let the head read features of older tasks, if so planned, and freeze the task."""
        if self.plan.lateral.weight:
            self._read_laterally(strategy)
        model_of(strategy).net.freeze()
        self.held_out.clear()
        self._teacher = None

    def _read_laterally(self, strategy: Any) -> None:
        """Fit the newest task's lateral head on training images; none where the budget is spent."""
        started = time.perf_counter()
        net = model_of(strategy).net
        room = None if self._limit is None else self._limit - floats(net)
        batches = list(plain_batches(strategy, strategy.adapted_dataset.eval()))
        sources = self.plan.lateral.sources(net, batches, room)
        if sources:
            event = self._event(net, *self.held_out.measure(net))
            training = training_of(strategy)
            mirrored = training is not None and training.mirrored
            fitted = self.plan.lateral.fit(net, sources, batches, mirrored=mirrored)
            add_lateral_head(net, *fitted)
            _, accuracy = self.held_out.measure(net)
            told = {"parameters": floats(net), "flops": flops(net), "accuracy_with": accuracy}
            self._tell({**event, "lateral": sources, **told})
        self.seconds["lateral"] += time.perf_counter() - started

    # --- going on inside a task -------------------------------------------------------------------

    def within_task(self, strategy: Any) -> State | None:
        """The schedule of growth, and what has been done; None where timings are made meanwhile."""
        if self.latency is not None:
            return None
        net = model_of(strategy).net
        tensors, taught = ({}, {}) if self._teacher is None else self._teacher.state()
        return tensors, {
            **taught,
            "events": [event for event in self.events if event["task"] == net.current],
            "seconds": {
                phase: total - self._seconds_before.get(phase, 0.0)
                for phase, total in self.seconds.items()
            },
            "obtained": self._obtained,
            **self._schedule.to_json(),
        }

    def go_on(self, strategy: Any, state: State) -> None:
        """Take up what `within_task` told."""
        tensors, told = state
        net = model_of(strategy).net
        task = net.current
        self._teacher = Teacher.of(tensors, told, net) if "teacher" in told else None
        self.events = [event for event in self.events if event["task"] != task] + told["events"]
        for phase, spent in told["seconds"].items():
            self.seconds[phase] += spent
        self._schedule, self._obtained = Schedule.from_json(told), told["obtained"]

    def _timed(self, net: FireflyNet) -> dict[str, object]:
        """Milliseconds of the task's own rows, and by which table."""
        if self.latency is None:
            return {}
        return {"milliseconds": self._own(net), "latency_table": self.latency.digest()}

    def _share(self, strategy: Any) -> int | None:
        """Floats that the network may hold after this task, so that each later one has as many."""
        if self.budget is None:
            return None
        stream = getattr(strategy.experience, "origin_stream", None)
        number = getattr(strategy.experience, "current_experience", None)
        tasks = self.n_tasks or (len(stream) if stream else 1)
        left = max(tasks - (number or 0), 1)
        held = floats(model_of(strategy).net)
        return held + max(self.budget - held, 0) // left

    # --- one growth step --------------------------------------------------------------------------

    def grow(self, strategy: Any) -> Growth | None:
        """One growth step of the newest task, on training images; None where nothing can grow."""
        net = model_of(strategy).net
        wanted = self._schedule.wanted(self.plan.growth)
        if self.plan.cost != LATENCY:
            wanted = int(wanted)
        amount = wanted - self._own(net)
        self._schedule.steps += 1
        room = None if self._limit is None else self._limit - floats(net)
        least = 0 if self.plan.cost == LATENCY else 1
        if amount <= 0 or amount < least or (room is not None and room < 1):
            return None
        batches = list(itertools.islice(iter(strategy.dataloader), 16))
        loss, autocast = loss_of(strategy), autocast_of(strategy)

        def mean_loss() -> float:
            with torch.no_grad(), evaluation(net), autocast():
                return sum(float(loss(net, batch)) for batch in batches) / len(batches)

        before = mean_loss()
        try:
            growth = self.criterion.grow(
                net,
                batches,
                loss,
                Budget(amount, self.plan.cost, room, self.latency),
                self._generator(strategy),
                autocast,
                self.held_out.batches,
            )
        except (BudgetTooSmall, NothingToGrow):
            return None
        self._follow(strategy, growth.edits)
        self._obtained = before - mean_loss()
        return growth

    # --- gates ------------------------------------------------------------------------------------

    def select(self, strategy: Any) -> None:
        """Let gates decide, on training images, which older units the newest task still reads."""
        net, gates = model_of(strategy).net, self.plan.selection
        batches = ToldBatches(strategy, "select", self._schedule.epoch)

        def chosen() -> tuple[Selected, dict[str, object]]:
            found = gates.select(net, batches, loss_of(strategy), autocast_of(strategy))
            return found, found.told()

        self._by_gates(strategy, "select", chosen)

    def prune(self, strategy: Any) -> None:
        """Remove own units of the newest task by gates, searched on training images.

        Under a tolerance, validation images say how dear units may be. From the first removal on
        the network before it teaches what is left, if so planned.
        """
        net, gates, tolerance = model_of(strategy).net, self.plan.gates, self.plan.prune_tolerance
        batches = ToldBatches(strategy, "prune", self._schedule.epoch)
        loss, autocast = loss_of(strategy), autocast_of(strategy)

        def accuracy(net: FireflyNet) -> float:
            return self.held_out.measure(net)[1] or 0.0

        def pruned() -> tuple[Pruning, dict[str, object]]:
            if tolerance is not None:
                chosen = tolerance.prune(net, gates, batches, loss, accuracy, autocast)
                return chosen.pruning, chosen.told()
            found = gates.prune(net, batches, loss, autocast)
            _warn_of_closed(found, gates, net.current)
            return found, found.told()

        teacher = self._teacher
        if teacher is None and self.plan.distillation.weight:
            teacher = Teacher(net)
        if self._by_gates(strategy, "prune", pruned):
            self._teacher = teacher

    def _by_gates(
        self,
        strategy: Any,
        phase: str,
        act: Callable[[], tuple[Selected | Pruning, dict[str, object]]],
    ) -> bool:
        """Let gates act where they can, move the optimizer's state along, and tell of it.

        Whether the network has changed.
        """
        started = time.perf_counter()
        net = model_of(strategy).net
        event, own = self._event(net, *self.held_out.measure(net)), self._own(net)
        try:
            found, told = act()
        except (NothingToPrune, NothingToSelect):
            return False
        self._follow(strategy, found.edits)
        self._schedule.lost(own - self._own(net), self.plan.growth)
        self.seconds[phase] += time.perf_counter() - started
        told = {**told, "parameters": floats(net), "flops": flops(net)}
        self._tell({**event, **told}, gates=found.history)
        return bool(found.edits)

    def _follow(self, strategy: Any, edits: Sequence[Edit]) -> None:
        """Let the optimizer's state go with the parameters."""
        for edit in edits:
            migrate(strategy.optimizer, edit)

    def _own(self, net: FireflyNet) -> float:
        """What the newest task has by now, in the currency of growth budgets."""
        if self.plan.cost == "units":
            return sum(space.width(net.current) for space in net.spaces.values())
        return own_cost(net, self.plan.cost, self.latency)

    def _generator(self, strategy: Any) -> torch.Generator:
        seed = self.seed + self._schedule.epoch
        seed = experience_seed(seed, model_of(strategy).net.current)
        return torch.Generator().manual_seed(seed)


def _warn_of_closed(found: Pruning, gates: GatePruning, task: int) -> None:
    """Say which spaces lost all their gates, and what to do about it."""
    if found.closed:
        by, cure = f"lam={gates.lam:g}", "lower lam"
        if gates.share is not None:
            by, cure = f"a share of {gates.share:g}", "keep more"
        warnings.warn(
            f"{by} closed all gates of {', '.join(found.closed)} in task {task}, where one unit is "
            f"left of each: {cure}",
            stacklevel=3,
        )
