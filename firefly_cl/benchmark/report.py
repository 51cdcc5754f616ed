"""Summaries of records over seeds: one table for each scenario, one row for each strategy."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from firefly_cl.benchmark.growth_steps import STEP_COLUMNS, step_row
from firefly_cl.benchmark.labels import CRITERION, PRICE, label_among, row_digest
from firefly_cl.benchmark.latency import BATCHES, mean_milliseconds, undisturbed
from firefly_cl.benchmark.published import PUBLISHED, Published
from firefly_cl.benchmark.quantities import count, duration, milliseconds, percent_over, size
from firefly_cl.benchmark.records import Record, average_accuracy, average_forgetting
from firefly_cl.benchmark.text_table import text_table
from firefly_cl.errors import FileError

COLUMNS = ("strategy", "seeds", "accuracy %", "forgetting %", "floats", "bytes", "FLOPs", "time")
"""Sizes are of everything kept after the last task; FLOPs of one image, averaged over tasks."""

GROWTH_COLUMNS = (
    "criterion",
    "seeds",
    "accuracy %",
    "floats",
    "FLOPs",
    "obtained %",
    "step",
    "time",
)
"""Of networks grown on one task: the decrease of the loss that growth steps obtained, in percent of
the predicted one, and the seconds of one step."""

PRUNING_COLUMNS = ("price", "seeds", "accuracy %", "floats", "FLOPs", "kept %", "step", "time")
"""Of networks pruned on one task: floats in percent of those before, seconds of one search."""

CLASS_COLUMNS = ("strategy", "task-inc. %", "forgetting", "class-inc. %", "forgetting", "rule")
"""Accuracy and forgetting where the task is told (task-incremental), and where it is not
(class-incremental), with the rule of `class_incremental.evaluate` that then chooses among tasks."""

LATENCY_COLUMN = "ms"
"""Behind FLOPs, where a record of the table tells: milliseconds of one image that comes alone, mean
over the timed tasks, of the seeds that were timed undisturbed."""

_SCENARIO_SETTINGS = ("scenario", "split_into", "tasks", "validation", "evaluate_on")


@dataclass(frozen=True)
class Summary:
    """The records of one strategy under one configuration, over seeds."""

    label: str
    records: Sequence[Record]

    @property
    def seeds(self) -> list[int]:
        """Seeds, ascending."""
        return [record.seed for record in self.records]

    def mean(self, name: str) -> float:
        """Mean over seeds of a number of the record."""
        return statistics.fmean(getattr(record, name) for record in self.records)

    def seconds(self) -> float:
        """Mean over seeds of the seconds of all phases together."""
        return statistics.fmean(sum(record.seconds.values()) for record in self.records)

    def flops(self) -> float:
        """Mean over seeds and tasks of the operations of one image."""
        return statistics.fmean(f for record in self.records for f in record.flops)

    def latency(self, batch: int) -> float | None:
        """Mean over seeds and timed tasks of the milliseconds of an image in such a batch."""
        return mean_known([mean_milliseconds(record.latency, batch) for record in self.records])

    def answer_time(self) -> float | None:
        """As `latency` of one image alone, over the seeds that were timed undisturbed."""
        quiet = [record.latency for record in self.records if undisturbed(record)]
        return mean_known([mean_milliseconds(latency, 1) for latency in quiet])

    def row(self) -> tuple[str, ...]:
        """The cells under COLUMNS."""
        return (
            self.label,
            str(len(self.records)),
            percent_over([record.average_accuracy for record in self.records]),
            percent_over([record.average_forgetting for record in self.records]),
            count(self.mean("parameters")),
            size(self.mean("bytes")),
            count(self.flops()),
            duration(self.seconds()),
        )

    @property
    def class_incremental(self) -> bool:
        """Whether it was evaluated without being told the tasks, too."""
        return all(record.class_incremental for record in self.records)

    def class_accuracies(self) -> list[float | None]:
        """Class-incremental average accuracy of each seed."""
        return [average_accuracy(record.class_incremental["accuracy"]) for record in self.records]

    def class_forgettings(self) -> list[float | None]:
        """Class-incremental average forgetting of each seed."""
        return [average_forgetting(record.class_incremental["accuracy"]) for record in self.records]

    def class_row(self) -> tuple[str, ...]:
        """The cells under CLASS_COLUMNS."""
        return (
            self.label,
            percent_over([record.average_accuracy for record in self.records]),
            percent_over([record.average_forgetting for record in self.records]),
            percent_over(self.class_accuracies()),
            percent_over(self.class_forgettings()),
            str(self.records[0].class_incremental["rule"]),
        )

    def growth_row(self) -> tuple[str, ...]:
        """The cells under GROWTH_COLUMNS."""
        events = self._events("predicted_decrease")
        predicted = sum(event["predicted_decrease"] or 0.0 for event in events)
        obtained = sum(event.get("obtained_decrease") or 0.0 for event in events)
        spent = sum(record.seconds.get("grow", 0.0) for record in self.records)
        return (
            self.label,
            str(len(self.records)),
            percent_over([record.average_accuracy for record in self.records]),
            count(self.mean("parameters")),
            count(self.flops()),
            f"{round(100 * obtained / predicted)}" if predicted > 0 else "-",
            duration(spent / len(events)) if events else "-",
            duration(self.seconds()),
        )

    def step_row(self) -> tuple[str, ...]:
        """The cells under STEP_COLUMNS."""
        return step_row(self.label, [record.growth_events for record in self.records])

    def pruning_row(self) -> tuple[str, ...]:
        """The cells under PRUNING_COLUMNS."""
        events = self._events("removed")
        before = [record.growth_events[0]["parameters_before"] for record in self.records]
        spent = sum(record.seconds.get("prune", 0.0) for record in self.records)
        return (
            self.label,
            str(len(self.records)),
            percent_over([record.average_accuracy for record in self.records]),
            count(self.mean("parameters")),
            count(self.flops()),
            f"{100 * self.mean('parameters') / statistics.fmean(before):.1f}",
            duration(spent / len(events)),
            duration(self.seconds()),
        )

    def _events(self, told: str) -> list[Mapping[str, Any]]:
        """Events of all seeds that tell something: of growth steps or of prunings."""
        return [e for record in self.records for e in record.growth_events if told in e]

    def matrix(self) -> list[list[float | None]]:
        """Mean over seeds of the accuracy matrix."""
        tasks = range(len(self.records[0].tasks))
        return [
            [mean_known([r.accuracy[i][j] for r in self.records]) for j in tasks] for i in tasks
        ]

    def curves(self) -> list[list[float | None]]:
        """For each seed, the average accuracy over the tasks known, after each task."""
        return [[mean_known(row) for row in record.accuracy] for record in self.records]


@dataclass(frozen=True)
class SideTable:
    """A table beside the main one of its group; `name` is put behind that of the group."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class ScenarioSummary:
    """Every strategy's summary on one scenario cut in one way; the protocols are never mixed."""

    scenario: str
    name: str
    """The name of its table: the scenario, followed by its cut where there are several."""
    title: str
    summaries: Sequence[Summary]

    @property
    def grows(self) -> bool:
        """Whether it is about growth on one task rather than about a stream of tasks."""
        return _grown_alone(self._records())

    @property
    def prunes(self) -> bool:
        """Whether it is about pruning on one task rather than about a stream of tasks."""
        return all(_only(record, "removed") for record in self._records())

    @property
    def timed(self) -> bool:
        """Whether answers of some of its networks were timed."""
        return any(record.latency for record in self._records())

    @property
    def has_times(self) -> bool:
        """Whether its table has LATENCY_COLUMN."""
        return any(undisturbed(record) for record in self._records())

    def _records(self) -> list[Record]:
        return [record for summary in self.summaries for record in summary.records]

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The heads of its columns, and one row for each summary."""
        columns: tuple[str, ...]
        if self.prunes:
            columns, rows = PRUNING_COLUMNS, [each.pruning_row() for each in self.summaries]
        elif self.grows:
            columns, rows = GROWTH_COLUMNS, [each.growth_row() for each in self.summaries]
        else:
            columns, rows = COLUMNS, [each.row() for each in self.summaries]
        if not self.has_times:
            return columns, rows
        at = columns.index("FLOPs") + 1
        told = [milliseconds(summary.answer_time()) for summary in self.summaries]
        return (*columns[:at], LATENCY_COLUMN, *columns[at:]), [
            (*row[:at], latency, *row[at:]) for row, latency in zip(rows, told, strict=True)
        ]

    def side_tables(self) -> list[SideTable]:
        """Tables beside that of `table`, where the records tell of them."""
        found = []
        if rows := [each.class_row() for each in self.summaries if each.class_incremental]:
            title = f"{self.title}: with the task told, and without"
            found.append(SideTable("class-incremental", title, CLASS_COLUMNS, rows))
        if self.grows:
            rows = [each.step_row() for each in self.summaries]
            title = f"{self.title}: decrease of the loss by a step, and by training"
            found.append(SideTable("steps", title, STEP_COLUMNS, rows))
        return found

    def published(self) -> Sequence[Published]:
        """What papers report on the test images of this protocol."""
        if "evaluate_on" in self.summaries[0].records[0].configuration:
            return ()
        return PUBLISHED.get((self.scenario, len(self.tasks())), ())

    def published_rows(self) -> list[tuple[str, ...]]:
        """Rows below those of `table`, with the accuracy only: sizes are not counted alike."""
        rest = len(self.table()[0]) - 3
        return [
            (paper.label, "", f"{paper.accuracy:.1f}", *[""] * rest) for paper in self.published()
        ]

    def tasks(self) -> Sequence[str]:
        """Names of the tasks, of the first seed (a seeded class order may rename them)."""
        return self.summaries[0].records[0].tasks

    def as_json(self) -> list[dict[str, Any]]:
        """One mapping for each strategy, with numbers not rounded."""
        return [
            {
                "table": self.name,
                "strategy": summary.label,
                "seeds": summary.seeds,
                "average_accuracy": summary.mean("average_accuracy"),
                "average_forgetting": mean_known(
                    [record.average_forgetting for record in summary.records]
                ),
                "parameters": summary.mean("parameters"),
                "bytes": summary.mean("bytes"),
                "flops": summary.flops(),
                "seconds": summary.seconds(),
                "milliseconds": {str(batch): summary.latency(batch) for batch in BATCHES},
                **_class_as_json(summary),
            }
            for summary in self.summaries
        ]


def _class_as_json(summary: Summary) -> dict[str, Any]:
    if not summary.class_incremental:
        return {}
    return {
        "class_incremental_accuracy": mean_known(summary.class_accuracies()),
        "class_incremental_forgetting": mean_known(summary.class_forgettings()),
        "class_incremental_rule": summary.records[0].class_incremental["rule"],
    }


def _only(record: Record, told: str) -> bool:
    """Whether a record is of one task, and all its events tell something."""
    events = record.growth_events
    return len(record.tasks) == 1 and bool(events) and all(told in event for event in events)


def mean_known(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def summaries(
    records: Sequence[Record], names: Mapping[str, str] | None = None
) -> list[ScenarioSummary]:
    """Group finished records by scenario and cut, then by strategy and configuration.

    names: what to call rows, by their `row_digest`; others are called by their strategies. Growth
    on one task is a group of its own for each backbone, where nothing else is compared.
    Raises FileError for records of one stream that were made on different images.
    """
    found: list[tuple[str, str, list[Record]]] = []
    cuts = sorted(_grouped(records, _cut).values(), key=_order)
    for group in cuts:
        _check_data(group)
    scenarios = [_order(group)[0] for group in cuts if not _grown_alone(group)]
    for group in cuts:
        scenario, tasks = _order(group)
        if _grown_alone(group):
            by_backbone = _grouped(group, lambda record: str(record.configuration["backbone"]))
            for backbone, grown in sorted(by_backbone.items()):
                name = f"{scenario}/growth-{backbone}"
                found.append((name, f"{scenario}, growth of {backbone}", grown))
            continue
        name = scenario if scenarios.count(scenario) == 1 else f"{scenario}/{tasks}-tasks"
        found.append((name, f"{scenario}, {tasks} {'task' if tasks == 1 else 'tasks'}", group))
    result = []
    taken: set[str] = set()
    for first, title, group in found:
        name, number = first, 2
        while name in taken:
            name = f"{first}-{number}"
            number += 1
        taken.add(name)
        configuration = group[0].configuration
        if "evaluate_on" in configuration:
            title += f", {configuration['evaluate_on']} images"
        scenario = str(configuration["scenario"])
        result.append(ScenarioSummary(scenario, name, title, _by_strategy(group, names or {})))
    return result


def _order(group: Sequence[Record]) -> tuple[str, int]:
    return str(group[0].configuration["scenario"]), len(group[0].tasks)


def _grown_alone(group: Sequence[Record]) -> bool:
    return all(_only(record, "predicted_decrease") for record in group)


def _grouped(records: Sequence[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _cut(record: Record) -> str:
    settings = [record.configuration.get(name) for name in _SCENARIO_SETTINGS]
    return json.dumps([*settings, len(record.tasks)])


def _check_data(group: Sequence[Record]) -> None:
    """Raise FileError where records of the same stream and seed tell of different images."""
    first: dict[int, Record] = {}
    for record in group:
        other = first.setdefault(record.seed, record)
        if record.data.get("sha256") != other.data.get("sha256"):
            one, two = (each.configuration for each in (other, record))
            raise FileError(
                f"{one['strategy']} and {two['strategy']} of {one['scenario']}, seed "
                f"{record.seed}, were run on different images (data sha256): report them apart"
            )


def _by_strategy(records: Sequence[Record], names: Mapping[str, str]) -> list[Summary]:
    rows = _grouped(records, lambda record: row_digest(record.configuration))
    called = {
        key: names.get(key, group[0].configuration["strategy"]) for key, group in rows.items()
    }
    found = []
    for key, group in rows.items():
        rivals = [rows[other][0] for other, name in called.items() if name == called[key]]
        label = label_among(
            group[0].configuration,
            [rival.configuration for rival in rivals],
            _told_by(group[0]),
            names.get(key),
        )
        group.sort(key=lambda record: record.seed)
        found.append(Summary(label, _one_of_each_seed(group)))
    found.sort(key=lambda summary: (-summary.mean("average_accuracy"), summary.label))
    return found


def _told_by(record: Record) -> str | None:
    """The option that a run on one task is about; None for others, which are about a strategy."""
    if _only(record, "predicted_decrease"):
        return CRITERION
    return PRICE if _only(record, "removed") else None


def _one_of_each_seed(records: Sequence[Record]) -> list[Record]:
    # the same run copied to two folders must not count twice
    return list({record.seed: record for record in records}.values())


def print_tables(groups: Sequence[ScenarioSummary], console: Console | None = None) -> None:
    """Print each scenario's tables; they fit 80 columns."""
    console = console or Console()
    for group in groups:
        console.print(text_table(group.title, *group.table(), console))
        for side in group.side_tables():
            console.print(text_table(side.title, side.columns, side.rows, console))
