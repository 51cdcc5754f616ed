"""What a growth step costs beside an epoch of training the same network at the same batch size.

    python benchmarks/growth_step.py           # measure (on an idle machine) and draw
    python benchmarks/growth_step.py --draw    # only draw the table again, from the record

Each repeat times half of its training steps, a growth step on a copy of the network, and the
other half; an epoch is as many of these training steps as the images fill batches. Images are
synthetic: times do not depend on what they show.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from firefly_cl.benchmark.environment import default_threads, hardware, use_threads, versions
from firefly_cl.benchmark.markdown import redraw_measured
from firefly_cl.benchmark.quantities import count, quartiles
from firefly_cl.benchmark.records import write_atomic
from firefly_cl.errors import ConfigurationError, DivergenceError, FireflyError
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.criterion import Model
from firefly_cl.growth.firefly import Firefly
from firefly_cl.network import FireflyNet
from firefly_cl.zoo import BACKBONES

ROOT = Path(__file__).resolve().parents[1]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    backbone: str = "vgg19"
    """Network that grows."""
    channels: int = 16
    """Channels of each of its layers."""
    candidates: int = 70
    """New candidates in each space, besides a split of every unit."""
    growth: float = 0.25
    """What the growth step may add, as a share of the network's parameters."""
    batches: int = 16
    """Batches that the growth step is given."""
    images: int = 50_000
    """Training images of an epoch."""
    image_size: int = 32
    """Side of the images in pixels."""
    classes: int = 100
    """Classes."""
    batch_size: int = 64
    """Images in a batch."""
    steps: int = 40
    """Training steps that are timed beside each growth step."""
    repeats: int = 5
    """Growth steps that are timed."""
    warmup: int = 5
    """Training steps before all that."""

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot be measured."""
        for name in ("channels", "batches", "images", "classes", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: give 1 or more")
        if self.batch_size < 2 or self.steps < 2 or self.warmup < 0 or self.candidates < 0:
            raise ConfigurationError(
                "batch_size and steps must be 2 or more, warmup and candidates 0 or more"
            )
        if not self.growth > 0:
            raise ConfigurationError(f"growth is {self.growth}: give a share above 0")

    @property
    def epoch(self) -> int:
        """Training steps of an epoch."""
        return math.ceil(self.images / self.batch_size)


def thin_network(settings: Settings) -> FireflyNet:
    """The network before it grows."""
    shape = (3, settings.image_size, settings.image_size)
    model = BACKBONES.get(settings.backbone)(
        n_classes=settings.classes,
        in_channels=shape[0],
        image_size=settings.image_size,
        constant_width=settings.channels,
        generator=torch.Generator().manual_seed(0),
    )
    return FireflyNet.from_module(model, torch.zeros(2, *shape))


def synthetic(settings: Settings) -> list[Batch]:
    """Batches of noise with labels."""
    generator, side = torch.Generator().manual_seed(1), settings.image_size
    return [
        (
            torch.randn(settings.batch_size, 3, side, side, generator=generator),
            torch.randint(settings.classes, (settings.batch_size,), generator=generator),
        )
        for _ in range(settings.batches)
    ]


def cross_entropy(model: Model, batch: Batch) -> Tensor:
    """The loss of training and growth."""
    return F.cross_entropy(model(batch[0]), batch[1])


class Stopwatch:
    """Times training steps of a network and growth steps of its copies."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.perf_counter) -> None:
        self.settings = settings
        self.clock = clock
        self.net = thin_network(settings).train()
        self.batches = synthetic(settings)
        self._next = itertools.cycle(self.batches)
        # so small a rate that the network stays as it is, and every number is still updated
        self._optimizer = torch.optim.SGD(
            self.net.trainable(), lr=1e-6, momentum=0.9, nesterov=True, weight_decay=5e-4
        )

    def train(self, steps: int) -> float:
        """Seconds of some training steps; raises DivergenceError."""
        start = self.clock()
        for _ in range(steps):
            self._optimizer.zero_grad()
            loss = cross_entropy(self.net, next(self._next))
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
            self._optimizer.step()
        if not bool(torch.isfinite(loss)):
            raise DivergenceError("the loss is not finite: other values take other times")
        return self.clock() - start

    def grow(self, seed: int) -> tuple[float, int]:
        """Seconds of a growth step of a copy, and the units that it added."""
        net = copy.deepcopy(self.net)
        parameters = sum(parameter.numel() for parameter in net.trainable())
        budget = Budget(max(int(self.settings.growth * parameters), 1), "parameters")
        generator = torch.Generator().manual_seed(seed)
        start = self.clock()
        growth = Firefly(news=self.settings.candidates).grow(
            net, self.batches, cross_entropy, budget, generator
        )
        return self.clock() - start, sum(growth.by_kind().values())


def record_of(settings: Settings, threads: int) -> dict[str, Any]:
    """Measure everything."""
    watch = Stopwatch(settings)
    if settings.warmup:
        watch.train(settings.warmup)
    half = settings.steps // 2
    pairs = []
    for repeat in range(settings.repeats):
        before = watch.train(half)
        grown, units = watch.grow(repeat)
        steps = before + watch.train(settings.steps - half)
        epoch = steps / settings.steps * settings.epoch
        pairs.append({"growth": grown, "epoch": epoch, "units": units})
    return {
        "schema": 1,
        "settings": asdict(settings),
        "method": (
            f"each growth step between two halves of {settings.steps} training steps; an epoch "
            f"is {settings.epoch} times their mean"
        ),
        "versions": versions(),
        "hardware": hardware(threads, "cpu"),
        "parameters": sum(parameter.numel() for parameter in watch.net.trainable()),
        "pairs": pairs,
    }


def table(record: dict[str, Any]) -> str:
    """The record as Markdown: medians in seconds (quartiles), and those of the ratio of pairs."""
    pairs, settings = record["pairs"], record["settings"]
    rows = {
        "growth step, s": [pair["growth"] for pair in pairs],
        "training epoch, s": [pair["epoch"] for pair in pairs],
        "growth step / epoch": [pair["growth"] / pair["epoch"] for pair in pairs],
    }
    lines = ["| | median (quartiles) |", "|---|---:|"]
    for name, values in rows.items():
        low, middle, high = quartiles(values)
        digits = 2 if "/" in name else 1
        lines.append(f"| {name} | {middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f}) |")
    machine = record["hardware"]
    lines.append("")
    lines.append(
        f"{settings['backbone']} of {settings['channels']} channels a layer "
        f"({count(record['parameters'])} parameters), {settings['candidates']} new candidates a "
        f"layer and a split of every unit, {settings['batches']} batches of "
        f"{settings['batch_size']}; epochs of {settings['images']} images of "
        f"{settings['image_size']} x {settings['image_size']}; {len(pairs)} pairs: "
        f"{record['method']}; {machine['processor']}, threads: {machine['threads']}; torch "
        f"{record['versions']['torch']}."
    )
    return "\n".join(lines)


def draw(record: Path, page: Path) -> None:
    """Redraw the table of `page` from the record; raises FileError."""
    redraw_measured(record, page, "growth-step", table)


def main(
    settings: tyro.conf.OmitArgPrefixes[Settings] = Settings(),
    record: Path = ROOT / "benchmarks" / "records" / "growth_step.json",
    page: Path = ROOT / "docs" / "performance.md",
    draw_only: Annotated[bool, tyro.conf.arg(name="draw"), tyro.conf.FlagCreatePairsOff] = False,
    threads: int | None = None,
) -> None:
    """Measure a growth step and an epoch, write the record, and draw its table.

    Args:
        settings: What is measured.
        record: File of the measured numbers.
        page: Markdown file with the table.
        draw_only: Draw from the record that is there.
        threads: Threads to compute with; physical cores unless OMP_NUM_THREADS says otherwise.
    """
    if not draw_only:
        threads = default_threads() if threads is None else threads
        use_threads(threads)
        content = json.dumps(record_of(settings, threads), indent=1) + "\n"
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(record, content.encode())
        print(table(json.loads(content)))
    draw(record, page)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FireflyError as error:
        raise SystemExit(f"error: {error}") from None
