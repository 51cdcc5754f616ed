"""The commands of firefly-cl and what they take, as tyro reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
_PRESET = "(default: the scenario's)"
Count = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=_PRESET)]
Number = Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint=_PRESET)]
_CORES = "(default: one for each physical core; with --ray as many as there is room for)"
Processes = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=_CORES)]
_SHARE = "(default: the physical cores, or OMP_NUM_THREADS, divided by --workers)"
Threads = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=_SHARE)]
Minutes = Annotated[float, tyro.conf.arg(metavar="MINUTES")]
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint=_PRESET)]
_DATASET = "(default: the dataset's)"
DataCount = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=_DATASET)]
DataNumber = Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint=_DATASET)]
DataName = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint=_DATASET)]
Names = Annotated[str, tyro.conf.arg(metavar="A,B,...")]
Some = Annotated[str | None, tyro.conf.arg(metavar="A,B,...", help_behavior_hint="(default: all)")]
Prices = Annotated[
    str | None, tyro.conf.arg(metavar="A,B,...", help_behavior_hint="(default: 1e-4)")
]
Shares = Annotated[str | None, tyro.conf.arg(metavar="A,B,...", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Settings = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=VALUE")
]
Folders = tyro.conf.Positional[
    Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...", help_behavior_hint="")]
]


@dataclass(frozen=True)
class _What:
    scenario: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SCENARIO")]] = (
        "split-digits"
    )
    """What to learn; `firefly-cl list` shows the scenarios."""
    strategy: Names = "firefly,naive,ewc,replay"
    """Strategies, with commas between."""
    tasks: Count = None
    """Stream only the first so many tasks."""
    split_into: Count = None
    """Cut the classes into so many tasks, where the scenario allows it."""
    class_incremental: Flag = False
    """Also test without telling the task: choose among the classes of all tasks so far."""
    preset: Name = None
    """Settings that hold where no other is given; `firefly-cl list presets` shows them."""


@dataclass(frozen=True)
class _Rounds:
    data: str = "digits"
    """digits, cifar10, cifar100, or folder (see docs/scenarios.md) for images in --data-dir."""
    criterion: Names = "firefly"
    """Growth criteria, with commas between; `firefly-cl list` shows them."""
    compare: Flag = False
    """Take every criterion there is."""
    rounds: int = 3
    """Growth steps; training goes before, between and after them."""
    growth: float = 0.25
    """What a step adds, as a share of what the network has."""
    cost: str = "parameters"
    """What growth is counted in: units, parameters, flops or latency."""


@dataclass(frozen=True)
class _Sweep:
    data: str = "digits"
    """digits, cifar10, cifar100, or folder (see docs/scenarios.md) for images in --data-dir."""
    lam: Prices = None
    """Price of a unit in terms of the loss, or several to sweep, with commas between."""
    keep: Shares = None
    """In place of a price, the share of its cost that the network keeps, or several to sweep."""
    cost: str = "units"
    """What prices and shares are counted in: units, parameters or flops."""
    rounds: int = 1
    """Searches of gates; training goes before, between and after them."""
    gate_epochs: int = 10
    """Epochs of one search, in which gates alone are trained."""


@dataclass(frozen=True)
class _Training:
    """What every command that trains takes."""

    seeds: Names = "0"
    """Seeds, with commas between: class order, validation split, weights, batches."""
    epochs: Count = None
    """Epochs of each task (`run`), or of each training between changes (`grow`, `prune`)."""
    backbone: Name = None
    """Network to learn with; `firefly-cl list` shows the backbones."""
    width: Number = None
    """Factor on every channel count of the backbone."""
    constant_width: Count = None
    """Give every layer so many channels instead."""
    budget: Count = None
    """Floats a learner may hold, for strategies that can keep to a budget."""
    batch_size: Count = None
    """Images in a training batch."""
    learning_rate: Number = None
    """Peak of the learning-rate schedule."""
    recipe: Settings = ()
    """Another training setting as name=value, such as mixup=0.2 or augmentation.cutout=8."""
    option: Settings = ()
    """A setting of the strategies as name=value, or STRATEGY.name=value for one of them."""
    setting: Settings = ()
    """A setting of the growth criterion as name=value, or CRITERION.name=value for one of them."""
    validation: float = 0.1
    """Fraction of the training images held out; every decision is made on these."""
    evaluate_on: str = "test"
    """test, or validation while settings are chosen: test images are not read then."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Folder or file of the data, where the scenario needs one."""
    image_size: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Pixels of a side that images of a folder are resized to, 32 unless told."""
    download: Flag = False
    """Allow fetching missing data from the internet."""
    out: Path = Path("runs")
    """Folder that keeps the runs."""
    overwrite: Flag = False
    """Discard what the run folders hold and run again."""
    save_every: Minutes = 10.0
    """Save progress inside a task every so many minutes; 0: only when a task ends."""
    threads: Threads = None
    """Threads of each run."""
    workers: int = 1
    """Runs at a time; more than one have a process each."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    json: Flag = False
    """Print one JSON object on the last line."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class _OneTask(_Training):
    """The same for a network that learns one dataset in one task."""

    epochs: DataCount = None
    backbone: DataName = None
    width: DataNumber = None
    constant_width: DataCount = None
    budget: DataCount = None
    batch_size: DataCount = None
    learning_rate: DataNumber = None


# The fields of the last base come first.
@dataclass(frozen=True)
class Run(_Training, _What):
    """Run strategies on a scenario and print their comparison.

    Each run is kept in OUT/<scenario>/<strategy>-seed<k>; one that is already finished there
    is not repeated.
    """


@dataclass(frozen=True)
class Grow(_OneTask, _Rounds):
    """Grow a network on one dataset, in rounds, by one growth criterion or by several.

    Every criterion gets the same seed network, budget and epochs. Each run is kept in
    OUT/<criterion>/<scenario>/firefly-seed<k>; one that is finished there is not repeated.
    """

    out: Path = Path("growth")
    """Folder that keeps the runs."""


@dataclass(frozen=True)
class Prune(_OneTask, _Sweep):
    """Prune a network on one dataset by gates, at prices of a unit or to shares of its cost.

    Each gets the same network and epochs. Each run is kept in
    OUT/lam-<price>/<scenario>/firefly-seed<k> or OUT/keep-<share>/...; one that is finished there
    is not repeated.
    """

    out: Path = Path("pruning")
    """Folder that keeps the runs."""


@dataclass(frozen=True)
class Benchmark:
    """Run the cells of a grid in worker processes and print their comparison.

    A grid is a TOML file of scenarios, strategies and seeds, see docs/benchmark.md. The same
    command keeps what is finished, and goes on with what was begun.
    """

    grid: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="GRID.toml")]]
    """The grid."""
    scenario: Some = None
    """Run only the cells of these scenarios, as the grid calls them."""
    strategy: Some = None
    """Only those of these strategies, as the grid calls them."""
    seeds: Some = None
    """Only those of these seeds."""
    workers: Processes = None
    """Cells to run at a time, which share the cores."""
    retries: int = 2
    """How often a cell is started again whose process was killed."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Run on a Ray cluster: auto (this machine's), HOST:PORT of its head, or local (made here)."""
    cpus_per_cell: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 1)")
    ] = None
    """With --ray: CPUs that a cell takes, and the threads that it has."""
    gpus_per_cell: Annotated[
        float | None, tyro.conf.arg(metavar="X", help_behavior_hint="(default: 1)")
    ] = None
    """With --ray: GPUs that a cell with device cuda takes, such as 0.25."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Folder or file of the data, where a scenario needs one."""
    download: Flag = False
    """Allow fetching missing data from the internet."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Folder that keeps the runs; the grid's, or else runs."""
    save_every: Minutes = 10.0
    """Save progress inside a task every so many minutes; 0: only when a task ends."""
    overwrite: Flag = False
    """Discard unfinished runs and those of other configurations; finished cells are kept."""
    dry_run: Flag = False
    """List the cells, their digests and how far each has come, and run nothing."""
    json: Flag = False
    """Print one JSON object on the last line."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Tune:
    """Search the settings of each strategy of a grid, with as many trials for each.

    Trials learn the first tasks and are scored on validation images: test images are not read.
    The first has the grid's own settings. OUT/tuned.toml is the grid with the best. The same
    command goes on where it was stopped.
    """

    grid: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="GRID.toml")]]
    """The grid, a TOML file as for `firefly-cl benchmark`."""
    trials: int = 20
    """Trials for each strategy on each scenario."""
    tasks: int = 5
    """Stream only the first so many tasks."""
    seeds: Names = "0"
    """Seeds that a trial's score is the mean over, with commas between."""
    keep: Annotated[str, tyro.conf.arg(metavar="A,B,...", help_behavior_hint="")] = ""
    """Settings not to search, such as learning_rate, which then stays the grid's for all."""
    sampler_seed: int = 0
    """Seed of the search; the same one gives the same trials."""
    workers: Processes = None
    """Trials to run at a time, which share the cores."""
    retries: int = 2
    """How often a trial is started again whose process was killed."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Run on the machines of a Ray cluster, as `benchmark` does: auto, HOST:PORT or local."""
    cpus_per_cell: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 1)")
    ] = None
    """With --ray: CPUs that a trial takes for each seed, and the threads that it has."""
    gpus_per_cell: Annotated[
        float | None, tyro.conf.arg(metavar="X", help_behavior_hint="(default: 1)")
    ] = None
    """With --ray: GPUs that it takes with device cuda, such as 0.25."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Folder or file of the data, where a scenario needs one."""
    download: Flag = False
    """Allow fetching missing data from the internet."""
    out: Path = Path("tuning")
    """Folder that keeps the trials, a small JSON file each."""
    overwrite: Flag = False
    """Discard unfinished trials and those of other searches; this one's are kept."""
    json: Flag = False
    """Print one JSON object on the last line."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class List:
    """Show the scenarios, strategies, growth criteria, backbones and presets."""

    kind: tyro.conf.Positional[
        Annotated[str | None, tyro.conf.arg(metavar="[KIND]", help_behavior_hint="")]
    ] = None
    """Only these: scenarios, strategies, criteria, backbones, or presets with what they set."""
    json: Flag = False
    """Print one JSON object on the last line."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Report:
    """Draw tables and figures from the records of runs."""

    runs: Folders
    """Run folders, or folders that hold some."""
    html: File = None
    """Write one self-contained page here; beside it figures (PNG), tables (CSV, LaTeX)."""
    markdown: File = None
    """Redraw the tables between <!-- table:SCENARIO --> and <!-- /table --> in this file."""
    grid: File = None
    """Call rows by the names that they have in this grid, a TOML file."""
    json: Flag = False
    """Print one JSON object on the last line."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Verify:
    """Check that saved models still give the logits recorded when each task ended, bit for bit."""

    runs: Folders
    """Run folders, or folders that hold some."""
    json: Flag = False
    """Print one JSON object on the last line."""
    debug: Flag = False
    """Show the traceback of an error."""


TrainingCommand = Run | Grow | Prune
Command = TrainingCommand | Benchmark | Tune | List | Report | Verify

COMMANDS: dict[str, Callable[..., Command]] = {
    "run": Run,
    "grow": Grow,
    "prune": Prune,
    "benchmark": Benchmark,
    "tune": Tune,
    "list": List,
    "report": Report,
    "verify": Verify,
}
