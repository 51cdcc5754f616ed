"""The toy of the splitting papers: Gaussian units in one dimension, grown towards a teacher of 15.

After Liu, Wu, Wang 2019 (arXiv 1910.02366) and Wu et al. 2020 (arXiv 2003.10392): f(x) =
sum_i w_i exp(-(a_i x + b_i)^2 / 2) learns, from one unit on, what such a sum of 15 units (drawn
with variance 3) says of x in [-5, 5]. Each criterion starts from the same unit and adds one at a
time, trained between. Those that only split stop where no split lowers the loss.

    python examples/toy_rbf.py --picture toy_rbf.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.criterion import criterion_of
from firefly_cl.network import FireflyNet

TEACHER, VARIANCE, POINTS, REACH = 15, 3.0, 256, 5.0

CRITERIA_SHOWN = ("firefly", "splitting", "signed-splitting", "net2net", "random")
"""Not gradmax and tiny: they go by the slope at 0, where a Gaussian is flat."""

Model = Callable[[Tensor], Tensor]
Batch = tuple[Tensor, Tensor]


class Gaussians(nn.Module):
    """A layer of Gaussian units of one input, summed."""

    def __init__(self, units: int, generator: torch.Generator, variance: float = 1.0) -> None:
        super().__init__()
        self.units = nn.Linear(1, units)
        self.sum = nn.Linear(units, 1, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(variance**0.5 * drawn)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1) -> (B, 1)."""
        result: Tensor = self.sum(torch.exp(-(self.units(x) ** 2) / 2))
        return result


def squared_error(model: Model, batch: Batch) -> Tensor:
    """The loss that training and growth go down."""
    return F.mse_loss(model(batch[0]), batch[1])


def teacher(seed: int) -> Batch:
    """Points in [-5, 5] and what the teacher says."""
    x = torch.linspace(-REACH, REACH, POINTS)[:, None]
    with torch.no_grad():
        model = Gaussians(TEACHER, torch.Generator().manual_seed(1000 + seed), VARIANCE)
        return x, model(x)


def train(net: FireflyNet, data: Batch, steps: int) -> None:
    """Adam over all points at once, its rate going down to nothing."""
    optimizer = torch.optim.Adam(net.trainable(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        squared_error(net, data).backward()
        optimizer.step()
        schedule.step()


@dataclass
class Run:
    """Error and fit after each round of one criterion, (POINTS, 1) each."""

    errors: list[float] = field(default_factory=list)
    fits: list[Tensor] = field(default_factory=list)
    units: list[int] = field(default_factory=list)


def grow(criterion: str | None, seed: int, rounds: int, steps: int) -> Run:
    """Train one unit and add one after each round; the same training without, if criterion is None.

    Raises ConfigurationError for an unknown criterion.
    """
    data, run = teacher(seed), Run()
    model = Gaussians(1, torch.Generator().manual_seed(seed))
    net = FireflyNet.from_module(model, data[0])
    grower = None if criterion is None else criterion_of(criterion, {})
    generator = torch.Generator().manual_seed(seed)
    for i in range(rounds + 1):
        if i and grower is not None:
            batches = [data, data] if criterion == "random-search" else [data]
            grower.grow(net, batches, squared_error, Budget(1), generator)
        train(net, data, steps)
        with torch.no_grad():
            run.fits.append(net(data[0]))
            run.errors.append(float(squared_error(net, data)))
        run.units.append(net.units())
    return run


def draw(path: Path, seed: int, runs: dict[str, Run]) -> None:
    """One row for each criterion, with the fit after some rounds; below, the errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x, y = teacher(seed)
    rounds = len(next(iter(runs.values())).fits)
    shown = sorted({round(i * (rounds - 1) / 4) for i in range(5)})
    size = (2.4 * len(shown), 1.6 * (len(runs) + 1.5))
    figure = plt.figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(len(runs) + 1, len(shown), height_ratios=[*[1] * len(runs), 1.5])
    for row, (name, run) in enumerate(runs.items()):
        for column, i in enumerate(shown):
            axes = figure.add_subplot(grid[row, column])
            axes.plot(x, y, color="0.7", linewidth=3)
            axes.plot(x, run.fits[i], color="C0")
            axes.set_title(f"{name}, units: {run.units[i]}", fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
    axes = figure.add_subplot(grid[len(runs), :])
    for name, run in runs.items():
        axes.semilogy(range(rounds), run.errors, label=name)
    axes.set_xlabel("round")
    axes.set_ylabel("mean squared error")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> dict[str, Run]:
    """Grow by each criterion, print the errors, draw the fits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--criteria", default=",".join(CRITERIA_SHOWN), help="with commas between")
    parser.add_argument("--seed", type=int, default=0, help="of teacher, first unit and growth")
    parser.add_argument("--rounds", type=int, default=TEACHER - 1, help="growth steps of one unit")
    parser.add_argument("--steps", type=int, default=500, help="of training in each round")
    parser.add_argument("--picture", type=Path, help="PNG file of the fits")
    asked = parser.parse_args(arguments)
    runs = {}
    for name in asked.criteria.split(","):
        CRITERIA.describe(name)  # before hours of the others
        runs[name] = grow(name, asked.seed, asked.rounds, asked.steps)
        print(f"{name}: {runs[name].units[-1]} units, error {runs[name].errors[-1]:.5f}")
    runs["not grown"] = grow(None, asked.seed, asked.rounds, asked.steps)
    print(f"not grown: 1 unit, error {runs['not grown'].errors[-1]:.5f}")
    if asked.picture:
        draw(asked.picture, asked.seed, runs)
    return runs


if __name__ == "__main__":
    main()
