"""Firefly: one network that grows with every task and freezes what it has learnt.

Wu, Liu, Stone, Liu 2020, arXiv 2102.08574. Options are the fields of `Plan`.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor

from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.answer import answer_task
from firefly_cl.continual.learner import SCHEMA, Setup
from firefly_cl.continual.loading import Pixels
from firefly_cl.continual.observer import Observer
from firefly_cl.continual.plan import Options, Plan, plan_of
from firefly_cl.continual.saved_network import WEIGHTS
from firefly_cl.continual.strategy import FireflyStrategy
from firefly_cl.continual.training import TrainingPlugin, experience_seed
from firefly_cl.errors import FileError, Unreadable
from firefly_cl.growth.latency import LatencyTable
from firefly_cl.network import FireflyNet, floats, flops, load_net, save_net, stored_bytes
from firefly_cl.network.cost import lateral_flops
from firefly_cl.network.files import write_atomically
from firefly_cl.network.modes import evaluation
from firefly_cl.network.readings import Reading, readings
from firefly_cl.scenarios import images_of
from firefly_cl.zoo import BACKBONES

TIMINGS = "latency.json"


class FireflyLearner:
    """FireflyStrategy on a scenario's stream, as the benchmark drives it.

    `plan`: how it treats a task, else what the options of `setup` say.
    """

    def __init__(self, setup: Setup, plan: Plan | None = None) -> None:
        self.setup = setup
        self.plan = plan or plan_of(setup.options)
        scenario = setup.scenario
        channels, height, width = scenario.image_shape
        model = BACKBONES.get(setup.backbone)(
            n_classes=2,
            in_channels=channels,
            image_size=height,
            width=setup.width,
            constant_width=setup.constant_width,
            generator=torch.Generator().manual_seed(setup.seed),
        )
        net = FireflyNet.from_module(model, torch.zeros(2, channels, height, width))
        self.strategy = self._strategy(net)
        self.tasks_trained = 0
        self.seconds: dict[str, float] = defaultdict(float)

    def _strategy(self, net: FireflyNet) -> FireflyStrategy:
        setup, scenario = self.setup, self.setup.scenario
        training = TrainingPlugin(
            setup.recipe,
            Pixels(scenario.mean, scenario.std, scenario.flip),
            seed=setup.seed,
            tasks=len(scenario.tasks),
            progress=setup.progress,
            units=lambda: strategy.net.units(),
            snapshots=setup.snapshots,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No loggers specified")
            evaluator = EvaluationPlugin()
        strategy = FireflyStrategy(
            model=net,
            plan=self.plan,
            training=training,
            budget=setup.budget,
            n_tasks=scenario.n_tasks,
            seed=setup.seed,
            device=setup.device,
            evaluator=evaluator,
        )
        return strategy

    @property
    def net(self) -> FireflyNet:
        """The growing network."""
        net: FireflyNet = self.strategy.net
        return net

    @property
    def growth_events(self) -> list[dict[str, object]]:
        """What every growth step and every pruning did, since the learner was made or taken up."""
        return self.strategy.firefly.events

    def train(self, experience: Any) -> None:
        """Learn the next experience; raises DivergenceError or DataError."""
        start = time.perf_counter()
        images_of(experience.dataset).require_classes()
        before = dict(self.strategy.firefly.seconds)
        devices = [self.setup.device] if self.setup.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(experience_seed(self.setup.seed, self.tasks_trained))
            self.strategy.train(experience, eval_streams=[])
        self.tasks_trained += 1
        edited = 0.0
        for phase, total in self.strategy.firefly.seconds.items():
            spent = total - before.get(phase, 0.0)
            self.seconds[phase] += spent
            edited += spent
        spent = self.setup.snapshots.spent
        self.seconds["train"] += time.perf_counter() - start + spent - edited

    def logits(self, task: int, images: Tensor) -> Tensor:
        """Answers (n, classes of the task), float32 on the CPU, to images (n, C, H, W) uint8."""
        start = time.perf_counter()
        scenario = self.setup.scenario
        logits = answer_task(
            self.net,
            task,
            images,
            image_shape=scenario.image_shape,
            mean=scenario.mean,
            std=scenario.std,
            views=self.setup.views,
        )
        self.seconds["evaluate"] += time.perf_counter() - start
        return logits

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode inside."""
        return evaluation(self.net)

    def floats(self) -> int:
        """Weights, norms with their statistics, and heads of all tasks."""
        return floats(self.net)

    def bytes(self) -> int:
        """All numbers, masks and flags."""
        return stored_bytes(self.net)

    def flops(self, task: int) -> int:
        """Operations of an answer to one image by its views, a multiply-add counted as 2."""
        views, lateral = self.setup.views, lateral_flops(self.net, task)
        own = flops(self.net, task) - lateral
        return own * len(views) + lateral * views.unshifted

    def widths(self) -> dict[str, list[int]]:
        """Units by owner task of every growable space."""
        return self.net.widths()

    def reuse(self) -> list[list[int]]:
        """Units that each task reads of each owner: [task][owner]."""
        return self.net.reuse()

    def readings(self) -> list[Reading]:
        """What the rows of each task read, space by space."""
        return readings(self.net)

    def observe(self, observer: Observer) -> None:
        """Show `observer` every growth step, selection and pruning from here on."""
        self.strategy.firefly.observer = observer

    def save(self, folder: Path) -> None:
        """Write the network, the timings that growth is charged by, and model.json.

        Raises FileError.
        """
        scenario = self.setup.scenario
        extra = {
            "mean": list(scenario.mean),
            "std": list(scenario.std),
            "image_shape": list(scenario.image_shape),
            **asdict(self.setup.views),
        }
        save_net(self.net, folder / WEIGHTS, extra)
        told = {
            "kind": "firefly",
            "schema": SCHEMA,
            "weights": WEIGHTS,
            "sha256": _digest(folder / WEIGHTS),
        }
        latency = self.strategy.firefly.latency
        if latency is not None:
            write_atomically(folder / TIMINGS, latency.to_json())
            told["timings_sha256"] = latency.digest()
        write_atomically(folder / "model.json", (json.dumps(told, indent=1) + "\n").encode())

    def resume(self, folder: Path, tasks: int) -> None:
        """Take up what `save` wrote after `tasks` tasks; raises FileError."""
        path = folder / "model.json"
        latency = self.strategy.firefly.latency
        if latency is not None:  # other timings than those of the run would grow otherwise
            latency = LatencyTable(None, LatencyTable.load(folder / TIMINGS).timings)
        try:
            told = json.loads(path.read_bytes())
            whole = told["sha256"] == _digest(folder / WEIGHTS)
            timed = latency is None or told["timings_sha256"] == latency.digest()
        except FileNotFoundError:
            raise FileError(f"{path} or the weights that it names are missing") from None
        except OSError as error:
            raise Unreadable.of(folder, error) from error
        except (ValueError, KeyError, TypeError):
            raise FileError(f"{path} or the weights that it names are damaged") from None
        if not whole:
            raise FileError(f"{folder / WEIGHTS} is damaged (its checksum differs)")
        if not timed:
            raise FileError(f"{folder / TIMINGS} is damaged (its checksum differs)")
        net, _ = load_net(folder / WEIGHTS)
        if len(net.tasks) != tasks:
            raise FileError(f"{folder / WEIGHTS} holds {len(net.tasks)} tasks, not {tasks}")
        self.strategy = self._strategy(net.train())
        self.strategy.model.tasks = {task: task for task in range(tasks)}
        self.strategy.firefly.latency = latency
        self.tasks_trained = tasks


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@STRATEGIES.register("firefly", options=Options)
def firefly(setup: Setup) -> FireflyLearner:
    """Firefly growth with frozen row blocks; options are the fields of Plan."""
    return FireflyLearner(setup)
