"""The best of several random tries, each trained for a few steps and judged on validation."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from firefly_cl.errors import ConfigurationError, DivergenceError
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.criterion import (
    Autocast,
    Growth,
    Loss,
    require_batches,
    require_positive,
)
from firefly_cl.growth.random import Random
from firefly_cl.network import FireflyNet
from firefly_cl.network.modes import evaluation


@CRITERIA.register("random-search")
@dataclass(frozen=True)
class RandomSearch:
    """Hill climbing by random morphisms (NASH: Elsken, Metzen, Hutter 2017, arXiv 1711.04528).

    Each try grows and trains a copy of the network. What is committed is the structure of the
    best one with the values that it began with: the training of tries chooses, and teaches the
    network nothing. reach: as in `random`. tries, steps: how many, and of how many steps of SGD
    with learning_rate and momentum 0.9.
    """

    tries: int = 4
    steps: int = 8
    learning_rate: float = 0.01
    reach: float = 0.1

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        if self.tries < 1 or self.steps < 0:
            raise ConfigurationError("random-search needs 1 or more tries, of 0 or more steps")
        require_positive("random-search", reach=self.reach, learning_rate=self.learning_rate)

    def grow(
        self,
        net: FireflyNet,
        batches: Sequence[Any],
        loss: Loss,
        budget: Budget,
        generator: torch.Generator,
        autocast: Autocast = nullcontext,
        validation: Sequence[Any] = (),
    ) -> Growth:
        """One growth step; raises EditError, DivergenceError, and leaves `net` as it was then.

        Without validation batches the last quarter of `batches` is held out of the training of
        tries instead; ConfigurationError if that leaves none.
        """
        require_batches(batches)
        if not validation:
            held = math.ceil(len(batches) / 4)
            batches, validation = batches[:-held], batches[-held:]
        if not batches:
            raise ConfigurationError(
                "random-search judges its tries on data that they are not trained on: give "
                "validation batches, or two batches of training data at least"
            )
        seeds = torch.randint(2**62, (self.tries,), generator=generator).tolist()
        losses = [
            self.attempt(net, seed, batches, loss, budget, autocast, validation) for seed in seeds
        ]
        best = min(losses)
        if not math.isfinite(best):
            raise DivergenceError(
                f"all {self.tries} tries of random-search diverged: lower their learning_rate "
                f"({self.learning_rate}) or look for damaged inputs"
            )
        return self._grown(net, seeds[losses.index(best)], batches, loss, budget)

    def attempt(
        self,
        net: FireflyNet,
        seed: int,
        batches: Sequence[Any],
        loss: Loss,
        budget: Budget,
        autocast: Autocast,
        validation: Sequence[Any],
    ) -> float:
        """Mean validation loss of one try on a copy of the network; infinite if it diverged."""
        trial = copy.deepcopy(net)
        self._grown(trial, seed, batches, loss, budget)
        parameters = trial.trainable()
        optimizer = torch.optim.SGD(parameters, lr=self.learning_rate, momentum=0.9)
        devices = [parameters[0].device] if parameters[0].is_cuda else []
        with torch.random.fork_rng(devices=devices):  # dropout draws from the global generator
            torch.manual_seed(seed)
            trial.train()
            for step in range(self.steps):
                optimizer.zero_grad()
                with autocast():
                    value = loss(trial, batches[step % len(batches)])
                value.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
                optimizer.step()
        with evaluation(trial), torch.no_grad():
            total = sum(float(loss(trial, batch)) for batch in validation) / len(validation)
        return total if math.isfinite(total) else math.inf

    def _grown(
        self, net: FireflyNet, seed: int, batches: Sequence[Any], loss: Loss, budget: Budget
    ) -> Growth:
        generator = torch.Generator().manual_seed(seed)
        return Random(self.reach).grow(net, batches, loss, budget, generator)
