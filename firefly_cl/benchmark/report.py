"""Tables of records over seeds: one for each scenario, with one row for each strategy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from firefly_cl.benchmark.growth_steps import STEP_COLUMNS
from firefly_cl.benchmark.labels import CRITERION, PRICE, label_among, row_digest
from firefly_cl.benchmark.latency import BATCHES, undisturbed
from firefly_cl.benchmark.published import Published, published_for
from firefly_cl.benchmark.quantities import milliseconds
from firefly_cl.benchmark.records import Record
from firefly_cl.benchmark.summary import (
    CLASS_COLUMNS,
    COLUMNS,
    GROWTH_COLUMNS,
    PRUNING_COLUMNS,
    Summary,
    mean_known,
)
from firefly_cl.benchmark.text_table import text_table
from firefly_cl.errors import FileError

LATENCY_COLUMN = "ms"
"""Behind FLOPs, where a record of the table tells: milliseconds of one image that comes alone, mean
over the timed tasks, of the seeds that were timed undisturbed."""

_SCENARIO_SETTINGS = ("scenario", "split_into", "tasks", "validation", "evaluate_on", "image_size")


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
        return published_for(self.summaries[0].records[0].configuration)

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


def summaries(
    records: Sequence[Record], rows: Sequence[tuple[str, Mapping[str, Any]]] = ()
) -> list[ScenarioSummary]:
    """Group finished records by scenario and cut, then by strategy and configuration.

    rows: those of a grid, what each is called and a configuration of it; others are called by their
    strategies, and by settings in which they differ from a row of that name. Growth
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
        first = "" if group[0].configuration.get("tasks") is None else "the first "
        title = f"{scenario}, {first}{tasks} {'task' if tasks == 1 else 'tasks'}"
        found.append((name, title, group))
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
        result.append(ScenarioSummary(scenario, name, title, _by_strategy(group, rows)))
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
    return json.dumps([*_stream(record.configuration), len(record.tasks)])


def _stream(configuration: Mapping[str, Any]) -> list[Any]:
    return [configuration.get(name) for name in _SCENARIO_SETTINGS]


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


def _by_strategy(
    records: Sequence[Record], rows: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[Summary]:
    groups = _grouped(records, lambda record: row_digest(record.configuration))
    names = {row_digest(configuration): name for name, configuration in rows}
    called = {
        key: names.get(key, group[0].configuration["strategy"]) for key, group in groups.items()
    }
    found = []
    for key, group in groups.items():
        mine = group[0].configuration
        same = [other for other, name in called.items() if name == called[key]]
        rivals = [groups[other][0].configuration for other in same]
        if key not in names:
            rivals += [c for name, c in rows if name == called[key] and _stream(c) == _stream(mine)]
        label = label_among(mine, rivals, _told_by(group[0]), names.get(key))
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
