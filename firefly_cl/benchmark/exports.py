"""Tables for other programs: CSV with one line for each run, LaTeX with one for each strategy."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence

from firefly_cl.benchmark.comparison import backward_transfer
from firefly_cl.benchmark.latency import BATCHES, mean_milliseconds, newest_milliseconds
from firefly_cl.benchmark.report import ScenarioSummary

FIELDS = (
    "table",
    "strategy",
    "seed",
    "average_accuracy",
    "average_forgetting",
    "backward_transfer",
    "parameters",
    "bytes",
    "flops",
    "seconds",
    "class_incremental_accuracy",
    "class_incremental_forgetting",
    *(f"{which}_milliseconds_batch_{batch}" for batch in BATCHES for which in ("mean", "newest")),
)
"""Columns of the CSV: fractions, floats, bytes, operations of one image (mean over tasks), seconds,
and milliseconds of one image, mean over the timed tasks and of the newest."""

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
}


def as_csv(group: ScenarioSummary) -> str:
    """One line for each strategy and seed, numbers not rounded; empty where nothing is known."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for summary in group.summaries:
        unknown = [None] * len(summary.records)
        told = summary.class_incremental
        accuracies = summary.class_accuracies() if told else unknown
        forgettings = summary.class_forgettings() if told else unknown
        for record, *of_class in zip(summary.records, accuracies, forgettings, strict=True):
            writer.writerow(
                [
                    group.name,
                    summary.label,
                    record.seed,
                    record.average_accuracy,
                    record.average_forgetting,
                    backward_transfer(record),
                    record.parameters,
                    record.bytes,
                    statistics.fmean(record.flops),
                    sum(record.seconds.values()),
                    *of_class,
                    *(
                        read(record.latency, batch)
                        for batch in BATCHES
                        for read in (mean_milliseconds, newest_milliseconds)
                    ),
                ]
            )
    return out.getvalue()


def as_latex(group: ScenarioSummary) -> str:
    """The group's table for the package booktabs, published figures below a rule."""
    return _tabular(group.title, *group.table(), group.published_rows())


def side_tables_latex(group: ScenarioSummary) -> dict[str, str]:
    """As `as_latex`, the group's side tables by name."""
    return {
        side.name: _tabular(side.title, side.columns, side.rows) for side in group.side_tables()
    }


def _tabular(
    title: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    published: Sequence[tuple[str, ...]] = (),
) -> str:
    lines = [
        f"% {title}",
        f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        "\\toprule",
        _line(columns),
        "\\midrule",
        *map(_line, rows),
        *(["\\midrule", *map(_line, published)] if published else []),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _line(cells: tuple[str, ...]) -> str:
    return " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in cells) + " \\\\"
