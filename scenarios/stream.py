"""A scenario as an Avalanche benchmark; the one file here that needs Avalanche."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avalanche.benchmarks.scenarios.deprecated.generic_benchmark_creation import (
    create_multi_dataset_generic_benchmark,
)
from avalanche.benchmarks.utils.classification_dataset import (
    _make_taskaware_classification_dataset,
)

from firefly_cl.errors import DataError
from firefly_cl.scenarios.images import Images, LabelledImages
from firefly_cl.scenarios.scenario import Scenario


def dataset_of(
    images: Images, scaling: tuple[Sequence[float], Sequence[float]] | None = None
) -> Any:
    """An Avalanche dataset of `images` with their tasks; `scaling` as in `LabelledImages`."""
    tasks = images.task if images.tasks is None else images.tasks.tolist()
    return _make_taskaware_classification_dataset(
        LabelledImages(images, scaling), task_labels=tasks
    )


def benchmark_of(scenario: Scenario, *, normalised: bool) -> Any:
    """An Avalanche benchmark with the streams train, valid and test of a scenario.

    The generic multi-dataset benchmark is used because, unlike nc_benchmark, it takes a
    validation stream, and unlike the newer task_incremental_benchmark it keeps
    classes_in_this_experience. Raises DataError where tasks without validation images would move
    the validation stream of the others to wrong places.
    """
    scaling = (scenario.mean, scenario.std) if normalised else None

    def dataset(images: Images) -> Any:
        return dataset_of(images, scaling)

    held = [task for task in scenario.tasks if len(task.validation)]
    bare = [task for task in scenario.tasks if len(task.train) and not len(task.validation)]
    if held and bare:  # a task without any images is told of when it is to be learnt
        raise DataError(
            f"{bare[0].name} has no validation images, and other tasks of {scenario.name} have: "
            "hold out some of every task, or of none"
        )
    valid = [dataset(task.validation) for task in held]
    return create_multi_dataset_generic_benchmark(
        [dataset(task.train) for task in scenario.tasks],
        [dataset(task.test) for task in scenario.tasks],
        other_streams_datasets={"valid": valid} if valid else None,
    )
