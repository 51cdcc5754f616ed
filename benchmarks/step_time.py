"""What a training step on a late task costs beside one of a dense network of the same widths.

    python benchmarks/step_time.py           # measure (some minutes, on an idle machine) and draw
    python benchmarks/step_time.py --draw    # only draw the table again, from the record

The growing network has `tasks` frozen tasks; the step trains the units of the next one. The
dense network is what `extract` gives for that task, an ordinary module of the same widths, all of
it trained. Steps of the two alternate, so that both see the same machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from firefly_cl.benchmark.environment import default_threads, hardware, use_threads, versions
from firefly_cl.benchmark.markdown import redraw_measured
from firefly_cl.benchmark.quantities import count, quartiles
from firefly_cl.benchmark.records import write_atomic
from firefly_cl.continual.plan import Plan
from firefly_cl.continual.precision import Precision, lay_out
from firefly_cl.continual.recipe import Recipe
from firefly_cl.errors import ConfigurationError, DivergenceError, FireflyError
from firefly_cl.network import FireflyNet, extract, flops
from firefly_cl.zoo import BACKBONES

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("forward", "backward", "optimizer", "step")
NETWORKS = ("growing", "dense")


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    tasks: int = 20
    """Frozen tasks."""
    backbone: str = "resnet9"
    """Network of the first task; later tasks add what the default plan's seed gives."""
    width: float = 0.25
    """Factor on its channels."""
    image_size: int = 32
    """Side of the images in pixels."""
    classes: int = 5
    """Classes of each task."""
    batch_size: int = 64
    """Images in a batch."""
    repeats: int = 40
    """Steps of each network that are timed."""
    warmup: int = 5
    """Steps of each before that."""
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    """Number formats of the forward pass."""

    def __post_init__(self) -> None:
        """Raise ConfigurationError for values that cannot be measured."""
        for name in ("tasks", "classes", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: give 1 or more")
        if self.batch_size < 2 or self.warmup < 0:
            raise ConfigurationError("batch_size must be 2 or more and warmup 0 or more")


def late_task(settings: Settings) -> FireflyNet:
    """A network with frozen tasks and one open task after them."""
    shape = (3, settings.image_size, settings.image_size)
    model = BACKBONES.get(settings.backbone)(
        n_classes=settings.classes,
        in_channels=shape[0],
        image_size=settings.image_size,
        width=settings.width,
        generator=torch.Generator().manual_seed(0),
    )
    net = FireflyNet.from_module(model, torch.zeros(2, *shape))
    plan = Plan()
    for task in range(1, settings.tasks + 1):
        net.freeze()
        generator = torch.Generator().manual_seed(task)
        net.begin_task(
            settings.classes, plan.seed_widths(net), plan.reads(net), generator=generator
        )
    return net


@dataclass
class Subject:
    """A network under the clock: its step, and the seconds of each phase so far."""

    model: nn.Module
    parameters: list[nn.Parameter]
    seconds: dict[str, list[float]]

    @classmethod
    def of(cls, model: nn.Module, parameters: list[nn.Parameter]) -> Subject:
        """A network with nothing measured yet."""
        return cls(model.train(), parameters, {phase: [] for phase in PHASES})


def step(
    subject: Subject,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    precision: Precision,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """One training step, timed by phase; raises DivergenceError where the loss is not finite."""
    optimizer.zero_grad()
    start = clock()
    with precision.forward(x.device):
        loss = F.cross_entropy(subject.model(x), y)
    forward = clock()
    loss.backward()
    backward = clock()
    optimizer.step()
    end = clock()
    if not bool(torch.isfinite(loss)):
        raise DivergenceError("the loss is not finite: other values take other times")
    for phase, seconds in zip(
        PHASES, (forward - start, backward - forward, end - backward, end - start), strict=True
    ):
        subject.seconds[phase].append(seconds)


def measure(settings: Settings, precision_name: str) -> dict[str, Any]:
    """Quartiles of the seconds of each network and phase, in one number format."""
    device = torch.device("cpu")
    precision = Precision.of(Recipe(precision=precision_name), device)
    net = late_task(settings)
    dense = extract(net)
    subjects = {
        "growing": Subject.of(net, net.trainable()),
        "dense": Subject.of(dense, list(dense.parameters())),
    }
    optimizers = {}
    for name, subject in subjects.items():
        lay_out(subject.model, channels_last=precision.channels_last)
        # so small a rate that the values stay as they are, and every number is still updated
        optimizers[name] = torch.optim.SGD(
            subject.parameters, lr=1e-6, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
    generator = torch.Generator().manual_seed(0)
    side = settings.image_size
    x = torch.randn(settings.batch_size, 3, side, side, generator=generator)
    if precision.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(settings.classes, (settings.batch_size,), generator=generator)
    for i in range(settings.warmup + settings.repeats):
        for name in NETWORKS if i % 2 else reversed(NETWORKS):
            step(subjects[name], optimizers[name], x, y, precision)
    return {
        "channels_last": precision.channels_last,
        "seconds": {
            name: {
                phase: quartiles(values[settings.warmup :])
                for phase, values in subject.seconds.items()
            }
            for name, subject in subjects.items()
        },
    }


def record_of(settings: Settings, threads: int) -> dict[str, Any]:
    """Measure everything."""
    net = late_task(settings)
    dense = extract(net)
    return {
        "schema": 1,
        "settings": asdict(settings),
        "versions": versions(),
        "hardware": hardware(threads, "cpu"),
        "widths": net.widths(),
        "flops": flops(net),
        "trained": {
            "growing": sum(p.numel() for p in net.trainable()),
            "dense": sum(p.numel() for p in dense.parameters()),
        },
        "precisions": {name: measure(settings, name) for name in settings.precisions},
    }


def table(record: dict[str, Any]) -> str:
    """The record as Markdown: medians in milliseconds (quartiles), and their ratio."""
    lines = ["| precision | phase | growing, ms | dense, ms | growing / dense |"]
    lines.append("|---|---|---:|---:|---:|")
    for precision, measured in record["precisions"].items():
        for phase in PHASES:
            cells, medians = [], []
            for name in NETWORKS:
                low, middle, high = (1000 * s for s in measured["seconds"][name][phase])
                cells.append(f"{middle:.1f} ({low:.1f}-{high:.1f})")
                medians.append(middle)
            ratio = medians[0] / medians[1]
            lines.append(f"| {precision} | {phase} | {' | '.join(cells)} | {ratio:.2f} |")
    settings, machine = record["settings"], record["hardware"]
    lines.append("")
    lines.append(
        f"{settings['backbone']} of width {settings['width']:g}, {settings['tasks']} frozen tasks, "
        f"batches of {settings['batch_size']} images of {settings['image_size']} x "
        f"{settings['image_size']}; {count(record['trained']['growing'])} numbers trained of "
        f"{count(record['trained']['dense'])} in the dense network; medians (quartiles) of "
        f"{settings['repeats']} alternating steps; {machine['processor']}, "
        f"threads: {machine['threads']}; torch {record['versions']['torch']}."
    )
    return "\n".join(lines)


def draw(record: Path, page: Path) -> None:
    """Redraw the table of `page` from the record; raises FileError."""
    redraw_measured(record, page, "step-time", table)


def main(
    settings: tyro.conf.OmitArgPrefixes[Settings] = Settings(),
    record: Path = ROOT / "benchmarks" / "records" / "step_time.json",
    page: Path = ROOT / "docs" / "performance.md",
    draw_only: Annotated[bool, tyro.conf.arg(name="draw"), tyro.conf.FlagCreatePairsOff] = False,
    threads: int | None = None,
) -> None:
    """Measure step times, write the record, and draw its table.

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
