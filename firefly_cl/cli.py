"""The command line: firefly-cl run, grow, prune, benchmark, tune, list, report, verify."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from firefly_cl import __version__
from firefly_cl.commands import (
    COMMANDS,
    Benchmark,
    Command,
    Grow,
    List,
    Prune,
    Report,
    Run,
    TrainingCommand,
    Tune,
    Verify,
)
from firefly_cl.errors import ConfigurationError, FileError, FireflyError
from firefly_cl.help_page import HelpPage

if TYPE_CHECKING:
    from firefly_cl.benchmark.plan import Request
    from firefly_cl.benchmark.runner import Outcome

_ABOUT = """Continual learning by networks that grow and forget nothing.

firefly-cl --version tells the version."""

# Only the standard library, tyro and light modules above: --help must answer at once.


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run the command, and exit: 0 done, 1 a check or cell failed, 2 error, 130 Ctrl-C."""
    sys.exit(execute(_parse(sys.argv[1:] if arguments is None else arguments)))


def _parse(arguments: Sequence[str]) -> Command:
    if list(arguments[:1]) == ["--version"]:
        print(f"firefly-cl {__version__}")
        sys.exit()
    box, page = io.StringIO(), HelpPage()
    try:
        with contextlib.redirect_stderr(box), contextlib.redirect_stdout(page):
            command: Command = tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="firefly-cl",
                description=_ABOUT,
                args=arguments,
            )
    except SystemExit as end:
        asked = not {"-h", "--help"}.isdisjoint(arguments)
        print(page.wrapped() if asked else page.text(), end="")
        if end.code:
            from firefly_cl.mistakes import mistake

            message = mistake(arguments, box.getvalue(), COMMANDS)
            print(f"error: {message}", file=sys.stderr)
            if "--json" in arguments:
                print(json.dumps({"error": message}))
        raise
    return command


def execute(command: Command) -> int:
    """Run one command; its exit code. Errors a user can act on become one line on stderr."""
    outcomes: list[Outcome] = []
    # Avalanche imports a solver that we never call, and it warns that it is not installed.
    warnings.filterwarnings("ignore", message="no QP solver found")
    try:
        if isinstance(command, TrainingCommand):
            return _train(command, outcomes)
        if isinstance(command, Benchmark):
            from firefly_cl.benchmark.grid_run import run_grid

            return run_grid(command)
        if isinstance(command, Tune):
            from firefly_cl.benchmark.tune_run import run_tuning

            return run_tuning(command)
        if isinstance(command, List):
            return _list(command)
        if isinstance(command, Report):
            return _report(command)
        return _verify(command)
    except KeyboardInterrupt as interrupt:
        return _fail(command, str(interrupt) or _interrupted(command, outcomes), 130)
    except FireflyError as error:
        return _fail(command, " ".join(str(error).split()), 2)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        sys.stderr.close()
        return 141
    except MemoryError:
        return _fail(command, "out of memory: lower --batch-size or --width", 2)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        if "can't allocate memory" in text or "out of memory" in text:  # torch's RuntimeError
            return _fail(command, "out of memory: lower --batch-size or --width", 2)
        return _fail(
            command, f"unexpected {type(error).__name__}: {text} (--debug shows where)", 70
        )


def _fail(command: Command, message: str, code: int) -> int:
    _report_error(command, message)
    if command.json:
        print(json.dumps({"error": message}))
    return code


def _report_error(command: Command, message: str) -> str:
    if command.debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return message


def _interrupted(command: Command, outcomes: Sequence[Outcome]) -> str:
    if not isinstance(command, TrainingCommand):
        return "interrupted"
    return (
        f"interrupted after {len(outcomes)} finished runs, kept in {command.out}: "
        "the same command does the rest"
    )


def _train(command: TrainingCommand, outcomes: list[Outcome]) -> int:
    from firefly_cl.benchmark.environment import default_threads, use_threads
    from firefly_cl.benchmark.plan import (
        cells_of,
        check,
        check_data_dir,
        check_device,
        check_options,
        check_save_every,
        check_settings,
    )

    runs = _requests(command)
    for _, request, _ in runs:
        check(request)
    check_data_dir(command.data_dir)
    check_save_every(command.save_every)
    threads = default_threads() if command.threads is None else command.threads
    for option, number in (("threads", threads), ("workers", command.workers)):
        if number < 1:
            raise ConfigurationError(f"--{option} is {number}: give 1 or more")
    from firefly_cl.benchmark.folders import check_writable, is_finished
    from firefly_cl.benchmark.placement import local_processes

    check_writable(command.out)
    most = sum(len(request.seeds) * len(request.strategies) for _, request, _ in runs)
    executor = local_processes(command.workers, most=most)  # while the cores are still all ours
    use_threads(threads if command.workers == 1 else 1)
    check_device(command.device)
    for _, request, _ in runs:
        check_options(request)

    from firefly_cl.benchmark.display import Display
    from firefly_cl.benchmark.runner import Planned, run_cells, run_in_processes

    plan = [
        Planned(cell, cell.folder(out), f"{title or cell.strategy} seed {cell.seed}")
        for title, request, out in runs
        for cell in cells_of(request)
    ]
    check_settings(
        each.cell for each in plan if command.overwrite or not is_finished(each.cell, each.folder)
    )
    common: dict[str, Any] = {
        name: getattr(command, name) for name in ("data_dir", "download", "overwrite", "save_every")
    }
    if command.workers > 1:
        run_in_processes(plan, executor, threads=command.threads, outcomes=outcomes, **common)
    else:
        with Display() as display:
            run_cells(plan, threads=threads, display=display, outcomes=outcomes, **common)
    return _conclude(command, outcomes)


def _requests(command: TrainingCommand) -> list[tuple[str, Request, Path]]:
    """What to call what is run (empty for its strategies), what it is, and its folder."""
    from firefly_cl.benchmark.plan import Request, parse_names, parse_seeds
    from firefly_cl.benchmark.presets import named

    common = Request(
        scenario=command.scenario if isinstance(command, Run) else "",
        strategies=parse_names(command.strategy, "--strategy") if isinstance(command, Run) else (),
        seeds=parse_seeds(command.seeds),
        tasks=command.tasks if isinstance(command, Run) else None,
        split_into=command.split_into if isinstance(command, Run) else None,
        validation=command.validation,
        evaluate_on=command.evaluate_on,
        class_incremental=isinstance(command, Run) and command.class_incremental,
        image_size=command.image_size,
        epochs=command.epochs,
        batch_size=command.batch_size,
        learning_rate=command.learning_rate,
        backbone=command.backbone,
        width=command.width,
        constant_width=command.constant_width,
        budget=command.budget,
        device=command.device,
        recipe=command.recipe,
        options=command.option,
        settings=command.setting,
        preset=named(command.preset) if isinstance(command, Run) and command.preset else None,
    )
    if isinstance(command, Run):
        return [("", common, command.out)]
    if isinstance(command, Prune):
        return _sweep(command, common)
    from firefly_cl.benchmark.rounds import growth_requests
    from firefly_cl.growth import CRITERIA

    criteria: Sequence[str] = CRITERIA.names()
    if command.compare and command.criterion != Grow.criterion:
        raise ConfigurationError("--compare takes every criterion: leave --criterion out")
    if not command.compare:
        criteria = parse_names(command.criterion, "--criterion")
    requests = growth_requests(
        common, command.data, criteria, command.rounds, command.growth, command.cost
    )
    return [
        (criterion, request, command.out / criterion)
        for request, criterion in zip(requests, criteria, strict=True)
    ]


def _sweep(command: Prune, common: Request) -> list[tuple[str, Request, Path]]:
    from firefly_cl.benchmark.sweep import parse_steps, pruning_requests

    steps = parse_steps(command.lam, command.keep)
    requests = pruning_requests(
        common, command.data, steps, command.rounds, command.cost, command.gate_epochs
    )
    return [
        (step.name, request, command.out / step.name.replace(" ", "-"))
        for step, request in zip(steps, requests, strict=True)
    ]


def _conclude(command: TrainingCommand, outcomes: Sequence[Outcome]) -> int:
    from firefly_cl.benchmark.report import print_tables, summaries

    kept = [outcome.record for outcome in outcomes if outcome.record is not None]
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if kept:
        print_tables(summaries(kept))
    for outcome in failed:
        print(f"error: {outcome.folder}: {outcome.error}", file=sys.stderr)
    if command.json:
        runs = [_outcome_as_json(outcome) for outcome in outcomes]
        print(json.dumps({"out": str(command.out), "runs": runs}))
    return 2 if failed else 0


def _outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    result: dict[str, Any] = {
        "strategy": outcome.cell.strategy,
        "seed": outcome.cell.seed,
        "folder": str(outcome.folder),
        "skipped": outcome.skipped,
        "error": outcome.error,
    }
    if outcome.record is not None:
        for name in ("average_accuracy", "average_forgetting", "parameters", "bytes", "seconds"):
            result[name] = getattr(outcome.record, name)
    return result


def _list(command: List) -> int:
    from rich.console import Console

    from firefly_cl.benchmark.catalogue import (
        PRESET_KIND,
        catalogue,
        preset_settings,
        print_catalogue,
        print_presets,
    )

    found: dict[str, Any] = catalogue(command.kind)
    if command.kind == PRESET_KIND:
        print_presets(Console())
        found = {PRESET_KIND: preset_settings()}
    else:
        print_catalogue(found, Console())
    if command.json:
        print(json.dumps(found))
    return 0


def _report(command: Report) -> int:
    from firefly_cl.benchmark.records import find_records, read_record
    from firefly_cl.benchmark.report import print_tables, summaries

    if not command.runs:
        raise ConfigurationError("no run named: give one or more run folders, for example runs")
    rows: list[tuple[str, dict[str, Any]]] = []
    if command.grid is not None:
        from firefly_cl.benchmark.grid import grid_rows, read_grid

        rows = grid_rows(read_grid(command.grid).cells())
    records = [read_record(path) for path in find_records(command.runs)]
    finished = [record for record in records if record.finished]
    if len(finished) < len(records):
        left_out = len(records) - len(finished)
        print(f"left out {left_out} unfinished of {len(records)} runs", file=sys.stderr)
    if not finished:
        raise ConfigurationError("no run is finished: let `firefly-cl run` end first")
    groups = summaries(finished, rows)
    print_tables(groups)
    written: list[Path] = []
    if command.markdown is not None:
        from firefly_cl.benchmark.markdown import redraw

        redraw(command.markdown, groups)
        written.append(command.markdown)
    if command.html is not None:
        from firefly_cl.benchmark.page import write_page

        written += write_page(command.html, groups)
    for path in written:
        print(f"wrote {path}")
    if command.json:
        told = [row for group in groups for row in group.as_json()]
        print(json.dumps({"written": [str(path) for path in written], "rows": told}))
    return 0


def _verify(command: Verify) -> int:
    from rich.console import Console

    from firefly_cl.benchmark.records import find_records, plain
    from firefly_cl.benchmark.verify import print_checks, unlike_here, verify

    if not command.runs:
        raise ConfigurationError("no run named: give one or more run folders, for example runs")
    console = Console()
    runs: list[dict[str, Any]] = []
    for path in find_records(command.runs):
        folder = path.parent
        try:
            checks, unlike = verify(folder), unlike_here(folder)
        except FileError as error:  # the other runs are checked all the same
            runs.append({"folder": str(folder), "error": _report_error(command, str(error))})
            continue
        print_checks(folder, checks, console, unlike)
        equal = all(check.equal for check in checks)
        differences = [plain(check.difference) for check in checks]
        found = {"equal": equal, "differences": differences, "unlike": unlike}
        runs.append({"folder": str(folder), **found})
    if command.json:
        print(json.dumps({"equal": all(run.get("equal", False) for run in runs), "runs": runs}))
    if any("error" in run for run in runs):
        return 2
    return 0 if all(run["equal"] for run in runs) else 1


if __name__ == "__main__":
    main()
