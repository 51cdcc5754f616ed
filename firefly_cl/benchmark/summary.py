"""The records of one strategy under one configuration, as rows of the report's tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firefly_cl.benchmark.growth_steps import step_row
from firefly_cl.benchmark.latency import mean_milliseconds, undisturbed
from firefly_cl.benchmark.quantities import count, duration, percent_over, size
from firefly_cl.benchmark.records import Record, average_accuracy, average_forgetting

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


def mean_known(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
