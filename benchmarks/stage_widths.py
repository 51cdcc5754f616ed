"""What VGG-19s of equal floats learn that are thin in some stages and wide in others.

    python benchmarks/stage_widths.py --data-dir DATA    # train, on CIFAR-100, and draw
    python benchmarks/stage_widths.py --draw             # only draw the table again

A growth criterion chooses where units go; this is what there is to choose between. Networks have
their widths from the beginning and train as a round of `firefly-cl grow` does. Validation accuracy
alone is measured, test images are not read. A network that is recorded is not trained again.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn

from firefly_cl.benchmark.configuration import Cell
from firefly_cl.benchmark.display import Display
from firefly_cl.benchmark.environment import default_threads, use_threads
from firefly_cl.benchmark.markdown import drawn, redraw_table
from firefly_cl.benchmark.plan import Request, cells_of, check_device, parse_names, parse_seeds
from firefly_cl.benchmark.presets import GROWTH
from firefly_cl.benchmark.quantities import count, percent_over
from firefly_cl.benchmark.records import Record, find_records, read_record
from firefly_cl.benchmark.rounds import one_task
from firefly_cl.benchmark.runner import Outcome, Planned, run_cells
from firefly_cl.errors import ConfigurationError, FireflyError
from firefly_cl.zoo import BACKBONES, vgg
from firefly_cl.zoo.sizes import Sizes

ROOT = Path(__file__).resolve().parents[1]
CONVOLUTIONS = (2, 2, 4, 4, 4)
"""Of each stage of a VGG-19."""
SHAPES = (
    "16-16-16-16-16",
    "19-20-16-16-12",
    "26-21-17-13-8",
    "7-10-15-17-21",
    "4-9-13-18-22",
    "11-17-21-16-11",
    "22-15-7-14-22",
)
"""Channels of the convolutions of each stage; the floats differ by less than 1 percent."""
COLUMNS = ("channels of stages", "seeds", "validation %", "floats", "FLOPs")


def parse_shape(shape: str) -> tuple[int, ...]:
    """Channels of each stage; raises ConfigurationError."""
    widths = tuple(int(part) for part in shape.split("-") if part.isdigit())
    if len(widths) != len(CONVOLUTIONS) or min(widths) < 1 or "-".join(map(str, widths)) != shape:
        raise ConfigurationError(
            f"{shape!r} is no shape: give the channels of {len(CONVOLUTIONS)} stages, as "
            f"in {SHAPES[0]}"
        )
    return widths


def register(shape: str) -> str:
    """Register the VGG-19 of that shape as a backbone; returns its name."""
    widths, name = parse_shape(shape), f"vgg19-{shape}"

    @BACKBONES.register(name)
    def build(
        n_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        width: float = 1.0,
        constant_width: int | None = None,
        generator: torch.Generator | None = None,
    ) -> nn.Module:
        """A VGG-19 whose stages have the widths of its name."""
        sizes = Sizes(n_classes, in_channels, image_size, width, constant_width)
        return vgg.stages(CONVOLUTIONS, widths, sizes, generator)

    return name


def cells(
    data: str, shapes: Sequence[str], seeds: Sequence[int], epochs: int, device: str = "auto"
) -> list[Cell]:
    """A training of each shape with each seed, as a round of growth trains."""
    scenario, preset = one_task(data, GROWTH)
    return [
        cell
        for shape in shapes
        for cell in cells_of(
            Request(
                scenario=scenario,
                strategies=("naive",),
                seeds=seeds,
                split_into=1,
                evaluate_on="validation",
                epochs=epochs,
                backbone=register(shape),
                width=1.0,
                device=device,
                preset=preset,
            )
        )
    ]


def table(records: Sequence[Record]) -> str:
    """The records as Markdown, the best shape first."""
    of_shape: dict[str, list[Record]] = {}
    for record in records:
        shape = str(record.configuration["backbone"]).removeprefix("vgg19-")
        of_shape.setdefault(shape, []).append(record)

    def accuracies(some: Sequence[Record]) -> list[float]:
        return [float(record.validation_accuracy[-1][-1] or 0) for record in some]

    ranked = sorted(of_shape.items(), key=lambda item: -statistics.fmean(accuracies(item[1])))
    rows = [
        (
            shape,
            str(len(some)),
            percent_over(accuracies(some)),
            count(statistics.fmean(record.parameters for record in some)),
            count(statistics.fmean(record.flops[-1] for record in some)),
        )
        for shape, some in ranked
    ]
    return drawn(COLUMNS, rows)


def main(
    data: str = "cifar100",
    data_dir: Path | None = None,
    shapes: str = ",".join(SHAPES),
    seeds: str = "3,4,5",
    epochs: int = 10,
    out: Path = ROOT / "benchmarks" / "stage_widths",
    page: Path = ROOT / "docs" / "growth.md",
    draw: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    threads: int | None = None,
    device: str = "auto",
) -> None:
    """Train VGG-19s of equal floats and unequal stages, and draw their table.

    Args:
        data: Dataset, as `firefly-cl grow --data`.
        data_dir: Folder or file of the data.
        shapes: Channels of the five stages, as in 16-16-16-16-16; commas between shapes.
        seeds: Seeds, with commas between.
        epochs: Epochs of each training.
        out: Folder of the runs.
        page: Markdown file with the table.
        draw: Draw from the records that are there.
        threads: Threads to compute with; physical cores unless OMP_NUM_THREADS says otherwise.
        device: cpu, cuda, or auto: cuda where there is one.
    """
    if not draw:
        check_device(device)
        every = cells(data, parse_names(shapes, "--shapes"), parse_seeds(seeds), epochs, device)
        planned = [
            Planned(cell, cell.folder(out / cell.backbone), f"{cell.backbone} seed {cell.seed}")
            for cell in every
        ]
        threads = default_threads() if threads is None else threads
        use_threads(threads)
        outcomes: list[Outcome] = []
        with Display() as display:
            run_cells(
                planned,
                threads=threads,
                data_dir=data_dir,
                download=False,
                overwrite=False,
                save_every=10,
                display=display,
                outcomes=outcomes,
            )
        for outcome in outcomes:
            if outcome.error is not None:
                print(f"error: {outcome.folder}: {outcome.error}", file=sys.stderr)
    found = [read_record(path) for path in find_records([out])]
    redraw_table(page, "stage-widths", table([record for record in found if record.finished]))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FireflyError as error:
        raise SystemExit(f"error: {error}") from None
