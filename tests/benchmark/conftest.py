"""Fixtures for tests that run many cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from blank_pictures import blank_pictures
from stopped_runs import interrupted, run
from tune_fakes import Tune, tune_with_fakes

from firefly_cl.benchmark.records import read_record
from firefly_cl.continual.firefly import FireflyLearner


@pytest.fixture(scope="module", autouse=True)
def blank_pictures_of_a_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """Events of a module's runs hold blank pictures, unless it says DRAWS_PICTURES."""
    if getattr(request.module, "DRAWS_PICTURES", False):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        blank_pictures(patch.setattr)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted; it grows in every task, up to its budget."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == []
    record = read_record(folder)
    assert {event["task"] for event in record.growth_events} == {0, 1, 2}
    assert record.parameters <= 24_000 < record.parameters * 1.05
    return folder


@pytest.fixture(scope="module")
def one_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its second task."""
    folder = tmp_path_factory.mktemp("one")
    interrupted(folder, FireflyLearner, "train", 2)
    return folder


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its third task."""
    folder = tmp_path_factory.mktemp("two")
    interrupted(folder, FireflyLearner, "train", 3)
    return folder


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tune:
    """`firefly-cl tune` with learners that take no time, in a folder of its own."""
    return tune_with_fakes(monkeypatch, tmp_path)
