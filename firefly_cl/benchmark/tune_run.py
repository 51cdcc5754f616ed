"""Runs the searches of a grid: round by round, one trial of every strategy in each."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from firefly_cl import errors
from firefly_cl.benchmark.configuration import differences
from firefly_cl.benchmark.executors import Executor, Job, News
from firefly_cl.benchmark.failures import Failure, read_failure
from firefly_cl.benchmark.folders import begun_threads, check_writable, finished_record
from firefly_cl.benchmark.grid import read_grid
from firefly_cl.benchmark.grid_display import GridDisplay
from firefly_cl.benchmark.grid_run import OUT
from firefly_cl.benchmark.placement import executor_of
from firefly_cl.benchmark.plan import check_data_dir, parse_names, parse_seeds
from firefly_cl.benchmark.quantities import percent
from firefly_cl.benchmark.records import FILE_NAME, Record, read_record, write_atomic
from firefly_cl.benchmark.sampler import load_optuna, propose
from firefly_cl.benchmark.search import Search, searches_of, short
from firefly_cl.benchmark.tables import read_tables
from firefly_cl.benchmark.trials import Trial, best, read_trial, write_trial
from firefly_cl.benchmark.tuned_grid import moved, shown, tuned_grid
from firefly_cl.errors import (
    ConfigurationError,
    DivergenceError,
    EditError,
    FileError,
)
from firefly_cl.search_space import Value

if TYPE_CHECKING:
    from firefly_cl.commands import Tune

TUNED = "tuned.toml"

OF_SETTINGS = (ConfigurationError, DivergenceError, EditError)
"""Errors that a trial's settings are to blame for: it is recorded as failed. After others, such as
a full disk, it is run again by the same command."""


@dataclass
class _Progress:
    """A search, its trials by number, what in its folder is of no use, and what ended it early."""

    search: Search
    trials: dict[int, Trial] = field(default_factory=dict)
    useless: list[Path] = field(default_factory=list)
    error: str | None = None

    def first(self, count: int) -> list[Trial]:
        """Its first so many trials."""
        return [self.trials[number] for number in range(count)]


@dataclass
class _Asked:
    """A trial that is being made, and the folders of its cells that have not ended."""

    progress: _Progress
    number: int
    settings: dict[str, Value]
    left: set[Path] = field(default_factory=set)


def run_tuning(command: Tune, executor: Executor | None = None) -> int:
    """Make the trials that are left, and write the grid of the best; 1 where one is missing.

    Everything is checked before the first trial. Raises FireflyError; KeyboardInterrupt, which
    tells what is done.
    """
    load_optuna()
    for option, number, least in (
        ("trials", command.trials, 1),
        ("tasks", command.tasks, 1),
        ("sampler-seed", command.sampler_seed, 0),
    ):
        if number < least:
            raise ConfigurationError(f"--{option} is {number}: give {least} or more")
    grid, seeds = read_grid(command.grid), parse_seeds(command.seeds)
    keep = parse_names(command.keep, "--keep") if command.keep else ()
    check_data_dir(command.data_dir)
    searches = searches_of(
        grid,
        seeds=seeds,
        tasks=command.tasks,
        keep=[name.replace("-", "_") for name in keep],
        sampler_seed=command.sampler_seed,
        out=command.out,
    )
    executor = executor or executor_of(command, len(searches) * len(seeds))
    check_writable(command.out)
    found = [_found(search, overwrite=command.overwrite) for search in searches]
    _check_data(found, command)
    left = [p for p in found if any(n not in p.trials for n in range(command.trials))]
    if left:
        _check(left, command)
    for progress in found:
        _discard(progress.useless)
    if left:
        _run(found, command, executor)
    complete = [progress for progress in found if progress.error is None]
    _print_results(found, command.trials)
    written = None
    if len(complete) == len(found):
        results = [(progress.search, progress.first(command.trials)) for progress in found]
        out = f"{grid.out or OUT}-tuned"
        told = moved(read_tables(command.grid, "a grid's"), command.grid.parent, command.out)
        text = tuned_grid(told, out, results, _head(command, results))
        written = command.out / TUNED
        write_atomic(written, text.encode())
        print(f"wrote {written}, for firefly-cl benchmark")
    if command.json:
        searches_told = [_as_json(progress, command.trials) for progress in found]
        tuned = None if written is None else str(written)
        print(json.dumps({"out": str(command.out), "tuned": tuned, "searches": searches_told}))
    return 0 if written is not None and all(best(p.first(command.trials)) for p in found) else 1


def _found(search: Search, *, overwrite: bool) -> _Progress:
    """What a folder holds of a search; raises FileError where it is of another one."""
    progress = _Progress(search)
    check_writable(search.folder)
    identity = search.identity()
    for path in sorted(search.folder.glob("trial-*.json")):
        trial = read_trial(path)
        if trial is None or search.path(trial.number) != path:
            print(f"{path} is damaged: this trial runs again", file=sys.stderr)
            continue
        changed = differences(trial.search, identity)
        if changed and overwrite:
            progress.useless.append(path)
        elif changed:
            name, (was, asked) = next(iter(changed.items()))
            raise FileError(
                f"{path} is a trial of another search, with {name} {was!r}, not {asked!r}: "
                "choose another --out, or discard it with --overwrite"
            )
        elif trial.settings.keys() != search.space.keys():
            print(f"{path} is damaged: this trial runs again", file=sys.stderr)
        else:
            progress.trials[trial.number] = trial
    made = {search.path(number).with_suffix("") for number in progress.trials}
    for folder in search.folder.glob("trial-*"):
        if folder.is_dir() and (overwrite or folder in made):
            progress.useless.append(folder)
    return progress


def _discard(paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            raise FileError(
                f"cannot remove {path} ({error.strerror}): remove it by hand"
            ) from error


def _check_data(found: Sequence[_Progress], command: Tune) -> None:
    """Raise FileError where there are trials on other images than those in `--data-dir`."""
    from firefly_cl.benchmark.runner import check_data

    made = [
        (cell, progress.search.folder, data)
        for progress in found
        for trial in progress.trials.values()
        for cell, data in zip(progress.search.cells, trial.data, strict=False)
        if data
    ]
    check_data(made, command.data_dir, download=command.download)


def _check(left: Sequence[_Progress], command: Tune) -> None:
    """Raise FireflyError for a device, data or settings that do not work; data are fetched."""
    from firefly_cl.benchmark.environment import use_threads
    from firefly_cl.benchmark.plan import check_device
    from firefly_cl.benchmark.runner import Scenarios, check_strategies

    use_threads(1)  # the cores are for the workers
    for device in dict.fromkeys(progress.search.cells[0].device for progress in left):
        check_device(device)
    scenarios = Scenarios(command.data_dir, command.download)
    check_strategies([cell for progress in left for cell in progress.search.cells], scenarios)


def _run(found: Sequence[_Progress], command: Tune, executor: Executor) -> None:
    """Make every trial that is missing, adding it to the progress of its search."""
    several = len({progress.search.scenario for progress in found}) > 1
    titles = {
        progress.search.run_folder(number, cell.seed): (
            f"{progress.search.scenario + ' ' if several else ''}{progress.search.strategy} "
            f"trial {number}" + (f" seed {cell.seed}" if len(progress.search.cells) > 1 else "")
        )
        for progress in found
        for number in range(command.trials)
        for cell in progress.search.cells
    }
    done = sum(len(p.search.cells) for p in found for n in p.trials if n < command.trials)
    with GridDisplay(titles, done) as display:
        try:
            for number in range(command.trials):
                _round(found, number, command, executor, display)
        except KeyboardInterrupt:
            made = sum(n < command.trials for progress in found for n in progress.trials)
            raise KeyboardInterrupt(
                f"interrupted with {made} of {command.trials * len(found)} trials made, kept in "
                f"{command.out}: the same command does the rest"
            ) from None


def _round(
    found: Sequence[_Progress], number: int, command: Tune, executor: Executor, display: GridDisplay
) -> None:
    """Trial `number` of every search that has none and was not ended."""
    jobs: list[Job] = []
    waiting: dict[Path, _Asked] = {}
    for progress in found:
        if progress.error is not None or number in progress.trials:
            continue
        search = progress.search
        settings = dict(search.defaults)
        if number:
            settings = propose(search.space, progress.first(number), search.sampler_seed)
        asked = _Asked(progress, number, settings)
        for cell in search.cells_with(settings):
            folder = search.run_folder(number, cell.seed)
            if finished_record(cell, folder) is not None:
                display.finished += 1
                continue
            asked.left.add(folder)
            waiting[folder] = asked
            jobs.append(
                Job(cell, folder, begun_threads(folder), command.data_dir, command.download)
            )
        if not asked.left:
            _conclude(asked, display.errors)
    for job in jobs:
        check_writable(job.folder)

    def hear(job: Job, news: News) -> None:
        display.hear(job, news)
        if news.kind in ("ended", "failed"):
            asked = waiting[job.folder]
            asked.left.discard(job.folder)
            if not asked.left:
                _conclude(asked, display.errors)

    if jobs:
        executor.run(jobs, hear)


def _record(folder: Path) -> Record | None:
    return read_record(folder) if (folder / FILE_NAME).exists() else None


def _conclude(asked: _Asked, told: Mapping[Path, str]) -> None:
    """Record a trial whose cells have ended, or why it could not be made.

    told: what ended cells early, by folder.
    """
    progress, number, settings = asked.progress, asked.number, asked.settings
    search = progress.search
    scores: list[float | None] = []
    records: list[Record] = []
    data: list[Mapping[str, Any]] = []
    failures: list[Failure] = []
    for cell in search.cells_with(settings):
        folder = search.run_folder(number, cell.seed)
        record = None
        with contextlib.suppress(FileError):  # what damaged it is told by the failure
            record = _record(folder)
        data.append({} if record is None else record.data)
        if record is not None:
            records.append(record)
        if record is not None and record.finished:
            scores.append(record.average_accuracy)
            continue
        scores.append(None)
        failure = read_failure(folder) if folder in told else None
        if failure is None or not issubclass(getattr(errors, failure.kind, Exception), OF_SETTINGS):
            progress.error = f"{folder}: {told.get(folder, 'its run left no record')}"
            return
        failures.append(failure)
    known = [score for score in scores if score is not None]
    if not failures and not known:
        progress.error = f"{search.folder}: there are no validation images to score by"
        return
    versions = (records or failures)[0].versions
    trial = Trial(
        number=number,
        settings=settings,
        score=None if failures else statistics.fmean(known),
        scores=scores,
        error=failures[0].error if failures else None,
        seconds=math.fsum(s for record in records for s in record.seconds.values()),
        versions={**versions, "optuna": metadata.version("optuna")},
        hardware=records[0].hardware if records else {},
        data=data,
        search=search.identity(),
    )
    write_trial(trial, search.path(number))
    progress.trials[number] = trial
    _discard([search.run_folder(number, search.cells[0].seed).parent])


def _head(command: Tune, results: Sequence[tuple[Search, Sequence[Trial]]]) -> str:
    """How the search was done, for the first lines of the grid."""
    trials = [trial for _, of_one in results for trial in of_one]
    tasks = f"first {command.tasks} tasks" if command.tasks > 1 else "first task"
    versions = sorted({_version(trial.versions) for trial in trials})
    kept = f" {command.keep} not searched." if command.keep else ""
    return (
        f"{command.grid} with the settings that `firefly-cl tune` chose.\n\n"
        f"{command.trials} trials for every strategy, on the {tasks}, seeds {command.seeds};\n"
        f"scores are average accuracies on validation images: no test image was read.{kept}\n"
        f"Trials: {command.out}, sampler seed {command.sampler_seed}.\n"
        f"Made by {', and '.join(versions)}."
    )


def _version(versions: Mapping[str, Any]) -> str:
    commit = versions.get("commit")
    return (
        f"firefly_cl {versions.get('firefly_cl')}"
        + (f" ({commit[:12]}{'+' * commit.endswith('+')})" if commit else "")
        + f", optuna {versions.get('optuna')}, torch {versions.get('torch')}"
    )


def _print_results(found: Sequence[_Progress], trials: int) -> None:
    console = Console()
    for scenario in dict.fromkeys(progress.search.scenario for progress in found):
        table = Table(
            title=f"{scenario}, validation images",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("strategy", no_wrap=True)
        for column in ("failed", "own %", "best %", "trial"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("best settings", overflow="fold")
        for progress in found:
            if progress.search.scenario == scenario and progress.error is None:
                table.add_row(*(Text(part) for part in _row(progress, trials)))
        if table.row_count:
            console.print(table)
    for progress in found:
        if progress.error is not None:
            print(f"error: {progress.error}", file=sys.stderr)


def _row(progress: _Progress, trials: int) -> tuple[str, ...]:
    made = progress.first(trials)
    chosen = best(made)
    failed = sum(trial.score is None for trial in made)
    settings = {} if chosen is None else chosen.settings
    return (
        progress.search.strategy,
        str(failed),
        percent(made[0].score),
        percent(None if chosen is None else chosen.score),
        "-" if chosen is None else str(chosen.number),
        ", ".join(f"{short(name)} {shown(value)}" for name, value in settings.items()),
    )


def _as_json(progress: _Progress, trials: int) -> dict[str, Any]:
    search = progress.search
    made = [progress.trials[number] for number in sorted(progress.trials) if number < trials]
    chosen = best(made)
    return {
        "scenario": search.scenario,
        "strategy": search.strategy,
        "folder": str(search.folder),
        "trials": len(made),
        "failed": sum(trial.score is None for trial in made),
        "default": made[0].score if made else None,
        "best": None if chosen is None else chosen.score,
        "trial": None if chosen is None else chosen.number,
        "settings": {} if chosen is None else dict(chosen.settings),
        "error": progress.error,
    }
