"""What a new task can use of older ones as they are: a linear classifier of their features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from firefly_cl.continual.nearest import probe_accuracies
from firefly_cl.errors import ConfigurationError
from firefly_cl.network import FireflyNet
from firefly_cl.network.laterals import feature_count, features
from firefly_cl.network.modes import evaluation

ITERATIONS = 200
"""Steps of L-BFGS at most."""


@dataclass(frozen=True)
class LateralProbe:
    """How a lateral head is fitted when a task has been trained.

    weight: of its logits beside the task's own; 0: there is none. decay: of its weights, over
    features of unit variance. tasks: older tasks that it reads at most.
    """

    weight: float = 0.0
    decay: float = 0.03
    tasks: int = 5

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot work."""
        if not 0 <= self.weight <= 10:
            raise ConfigurationError(f"lateral is {self.weight}: it must be in [0, 10]")
        if not 0 < self.decay <= 1e3:
            raise ConfigurationError(
                f"lateral_decay is {self.decay}: it must be above 0 and at most 1000"
            )
        if self.tasks < 1:
            raise ConfigurationError(
                f"lateral_tasks is {self.tasks}: give 1 or more, or lateral=0 for none"
            )

    def sources(
        self, net: FireflyNet, batches: Sequence[Sequence[Tensor]], room: int | None
    ) -> list[int]:
        """The older tasks that the newest one reads: the nearest that `room` floats pay.

        Near are those with high `probe_accuracies` of batches of the newest task.
        """
        classes = net.tasks[-1].classes
        prices = {source: classes * feature_count(net, source) for source in range(net.current)}
        left = math.inf if room is None else room - classes
        if len(prices) <= self.tasks and sum(prices.values()) <= left:
            return list(prices)
        accuracies = probe_accuracies(net, batches)
        chosen: list[int] = []
        for source in sorted(prices, key=lambda old: -accuracies[old]):
            if prices[source] <= left and len(chosen) < self.tasks:
                chosen.append(source)
                left -= prices[source]
        return sorted(chosen)

    def fit(
        self,
        net: FireflyNet,
        sources: Sequence[int],
        batches: Iterable[Sequence[Tensor]],
        *,
        mirrored: bool = False,
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Weights by source and bias for `add_lateral_head`, by `logistic_regression`.

        batches: inputs of the newest task as `net` gets them, with labels (B,). mirrored: features
        are means over the two images that are mirror images of each other.
        """
        held = list(batches)

        def of(source: int, x: Tensor) -> Tensor:
            part = features(net, source, x).float()
            if mirrored and x.dim() == 4:
                part = (part + features(net, source, x.flip(-1)).float()) / 2
            return part

        with evaluation(net), torch.no_grad():
            each = {source: torch.cat([of(source, x) for x, _ in held]) for source in sources}
        weight, bias = logistic_regression(
            torch.cat(list(each.values()), 1),
            torch.cat([y for _, y in held]),
            net.tasks[-1].classes,
            self.decay,
        )
        split = torch.split(self.weight * weight, [part.shape[1] for part in each.values()], 1)
        like = next(net.parameters())
        weights = {source: part.to(like) for source, part in zip(each, split, strict=True)}
        return weights, (self.weight * bias).to(like)


def logistic_regression(
    x: Tensor, labels: Tensor, classes: int, decay: float
) -> tuple[Tensor, Tensor]:
    """Weights (classes, d) and bias (classes,) over features x (n, d), labels (n,).

    They minimise the mean cross entropy and `decay` times the sum of the squared weights over
    features of mean 0 and variance 1; features that do not vary have none.
    """
    mean, deviation = x.mean(0), x.std(0, correction=0)
    scale = torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation.clamp(min=1e-12), 0.0)
    x = (x - mean) * scale
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, labels) + decay * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]  # torch leaves it so
    weight, bias = weight.detach() * scale, bias.detach()
    return weight, bias - weight @ mean
