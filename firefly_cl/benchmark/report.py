"""Summaries of records over seeds: one table for each scenario, one row for each strategy."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from firefly_cl.benchmark.configuration import flat
from firefly_cl.benchmark.published import PUBLISHED, Published
from firefly_cl.benchmark.quantities import count, duration, percent_over, size
from firefly_cl.benchmark.records import Record

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

PRICE = "lam"
"""The option of pruning that a sweep goes through."""

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

    def growth_row(self) -> tuple[str, ...]:
        """The cells under GROWTH_COLUMNS."""
        events = self._events("predicted_decrease")
        predicted = sum(event["predicted_decrease"] for event in events)
        obtained = sum(event.get("obtained_decrease", 0.0) for event in events)
        spent = sum(record.seconds.get("grow", 0.0) for record in self.records)
        return (
            self.label,
            str(len(self.records)),
            percent_over([record.average_accuracy for record in self.records]),
            count(self.mean("parameters")),
            count(self.flops()),
            f"{100 * obtained / predicted:.0f}" if predicted > 0 else "-",
            duration(spent / len(events)) if events else "-",
            duration(self.seconds()),
        )

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
        return self._does_nothing_but("predicted_decrease")

    @property
    def prunes(self) -> bool:
        """Whether it is about pruning on one task rather than about a stream of tasks."""
        return self._does_nothing_but("removed")

    def _does_nothing_but(self, told: str) -> bool:
        records = [record for summary in self.summaries for record in summary.records]
        return len(self.tasks()) == 1 and all(
            record.growth_events and all(told in event for event in record.growth_events)
            for record in records
        )

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The heads of its columns, and one row for each summary."""
        if self.prunes:
            return PRUNING_COLUMNS, [summary.pruning_row() for summary in self.summaries]
        if self.grows:
            return GROWTH_COLUMNS, [summary.growth_row() for summary in self.summaries]
        return COLUMNS, [summary.row() for summary in self.summaries]

    def published(self) -> Sequence[Published]:
        """What papers report on the test images of this protocol."""
        if "evaluate_on" in self.summaries[0].records[0].configuration:
            return ()
        return PUBLISHED.get((self.scenario, len(self.tasks())), ())

    def published_rows(self) -> list[tuple[str, ...]]:
        """Rows below those of `table`, with the accuracy only: sizes are not counted alike."""
        return [
            (paper.label, "", f"{paper.accuracy:.1f}", *[""] * (len(COLUMNS) - 3))
            for paper in self.published()
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
            }
            for summary in self.summaries
        ]


def mean_known(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def summaries(records: Sequence[Record]) -> list[ScenarioSummary]:
    """Group finished records by scenario and cut, then by strategy and configuration."""
    by_cut: dict[str, list[Record]] = {}
    for record in records:
        settings = [record.configuration.get(name) for name in _SCENARIO_SETTINGS]
        key = json.dumps([*settings, len(record.tasks)])
        by_cut.setdefault(key, []).append(record)
    scenarios = [str(group[0].configuration["scenario"]) for group in by_cut.values()]
    result = []
    taken: set[str] = set()
    for scenario, group in sorted(
        zip(scenarios, by_cut.values(), strict=True),
        key=lambda pair: (pair[0], len(pair[1][0].tasks)),
    ):
        tasks = len(group[0].tasks)
        name = scenario if scenarios.count(scenario) == 1 else f"{scenario}/{tasks}-tasks"
        number = 2
        while name in taken:
            name = f"{scenario}/{tasks}-tasks-{number}"
            number += 1
        taken.add(name)
        title = f"{scenario}, {tasks} {'task' if tasks == 1 else 'tasks'}"
        if "evaluate_on" in group[0].configuration:
            title += f", {group[0].configuration['evaluate_on']} images"
        result.append(ScenarioSummary(scenario, name, title, _by_strategy(group)))
    return result


def _by_strategy(records: Sequence[Record]) -> list[Summary]:
    by_configuration: dict[str, list[Record]] = {}
    for record in records:
        settings = {k: v for k, v in record.configuration.items() if k != "seed"}
        by_configuration.setdefault(json.dumps(settings, sort_keys=True), []).append(record)
    groups = [sorted(group, key=lambda record: record.seed) for group in by_configuration.values()]
    found = []
    for group in groups:
        strategy = group[0].configuration["strategy"]
        rivals = [other for other in groups if other[0].configuration["strategy"] == strategy]
        label = label_among(group[0].configuration, [rival[0].configuration for rival in rivals])
        found.append(Summary(label, _one_of_each_seed(group)))
    found.sort(key=lambda summary: (-summary.mean("average_accuracy"), summary.label))
    return found


def _one_of_each_seed(records: Sequence[Record]) -> list[Record]:
    # the same run copied to two folders must not count twice
    return list({record.seed: record for record in records}.values())


def label_among(configuration: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]]) -> str:
    """The strategy, with the settings in which it differs from its rivals of the same name."""
    strategy = str(configuration["strategy"])
    if len(rivals) == 1:
        return strategy
    mine, theirs = flat(configuration), [flat(rival) for rival in rivals]
    names = [
        name
        for name in dict.fromkeys(name for rival in theirs for name in rival)
        if name != "seed" and len({json.dumps(rival.get(name)) for rival in theirs}) > 1
    ]
    if names == [f"options.{PRICE}"]:
        return f"{PRICE} {mine.get(names[0])}"
    if "options.criterion" in names:
        names.remove("options.criterion")
        strategy = str(mine.get("options.criterion", strategy))
    # settings of a criterion that is not this one's say nothing
    names = [n for n in names if n in mine or not n.startswith("options.settings.")]
    settings = [f"{name.rpartition('.')[2]}={mine.get(name)}" for name in names]
    return f"{strategy} ({', '.join(settings)})" if settings else strategy


def print_tables(groups: Sequence[ScenarioSummary], console: Console | None = None) -> None:
    """Print each scenario's table; it fits 80 columns."""
    console = console or Console()
    for group in groups:
        table = Table(
            title=group.title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1),
            collapse_padding=True,
        )
        columns, rows = group.table()
        for column in columns:
            first = column == columns[0]
            table.add_column(
                column,
                justify="left" if first else "right",
                no_wrap=not first,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*row)
        console.print(table)
