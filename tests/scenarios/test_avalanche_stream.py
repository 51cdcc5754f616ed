"""The Avalanche benchmark of a scenario, and stock Avalanche parts run on it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from firefly_cl.errors import DataError
from firefly_cl.scenarios import SCENARIOS, Scenario, ScenarioOptions, images_of, normalise
from firefly_cl.scenarios.cut import class_order


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return SCENARIOS.get("split-digits")(ScenarioOptions(n_tasks=3))


@pytest.fixture(scope="module")
def benchmark_of_digits(scenario: Scenario) -> Any:
    return scenario.benchmark()


def test_streams_and_their_attributes(scenario: Scenario, benchmark_of_digits: Any) -> None:
    streams = benchmark_of_digits.streams
    assert set(streams) == {"train", "valid", "test"}
    for name, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        assert len(streams[name]) == 3
        for task, experience in zip(scenario.tasks, streams[name], strict=True):
            images = getattr(task, split)
            assert experience.current_experience == task.index
            assert experience.task_labels == [task.index] and experience.task_label == task.index
            # 4, 3 and 3 classes, each numbered from zero.
            assert sorted(experience.classes_in_this_experience) == list(range(len(task.classes)))
            assert list(experience.dataset.targets) == images.labels.tolist()
            x, y, t = experience.dataset[1]
            assert torch.equal(x, images.images[1]) and x.dtype == torch.uint8
            assert (y, t) == (int(images.labels[1]), task.index)
            assert type(y) is int


def test_validation_images_are_of_every_task_or_of_none(scenario: Scenario) -> None:
    def with_out(*numbers: int) -> Scenario:
        tasks = []
        for task in scenario.tasks:
            held = task.validation
            if task.index in numbers:
                held = replace(held, images=held.images[:0], labels=held.labels[:0])
            tasks.append(replace(task, validation=held))
        return replace(scenario, tasks=tuple(tasks))

    assert "valid" not in with_out(0, 1, 2).benchmark().streams
    for numbers in ((0,), (1, 2)):
        name = scenario.tasks[numbers[0]].name
        with pytest.raises(DataError, match=f"{name} has no validation images.*or of none"):
            with_out(*numbers).benchmark()


def test_images_of_an_experience(scenario: Scenario, benchmark_of_digits: Any) -> None:
    for task, experience in zip(scenario.tasks, benchmark_of_digits.train_stream, strict=True):
        images = images_of(experience.dataset)
        assert torch.equal(images.images, task.train.images)
        assert torch.equal(images.labels, task.train.labels)
        assert images.task == task.index


def test_images_of_a_mixed_and_of_an_empty_dataset(benchmark_of_digits: Any) -> None:
    one, two, _ = (experience.dataset for experience in benchmark_of_digits.train_stream)
    mixed = images_of(one.subset([0, 5]).concat(two.subset([1])))
    assert mixed.tasks is not None and mixed.tasks.tolist() == [0, 0, 1]
    assert torch.equal(mixed.images[2], two[1][0])
    with pytest.raises(DataError, match="the dataset is empty"):
        images_of(one.subset([]))


def test_normalised_items(scenario: Scenario) -> None:
    dataset = scenario.benchmark(normalised=True).train_stream[1].dataset
    images = scenario.tasks[1].train.images[:3]
    expected = normalise(images, scenario.mean, scenario.std)
    assert torch.equal(torch.stack([dataset[i][0] for i in range(3)]), expected)


def test_without_validation_there_is_no_valid_stream() -> None:
    options = ScenarioOptions(validation=0.0, first_tasks=2)
    streams = SCENARIOS.get("split-digits")(options).benchmark().streams
    assert set(streams) == {"train", "test"} and len(streams["train"]) == 2


def test_class_order_is_that_of_nc_benchmark() -> None:
    from avalanche.benchmarks import nc_benchmark
    from torch.utils.data import TensorDataset

    class Targets(TensorDataset):
        targets = tuple(range(100))

    data = Targets(torch.zeros(100, 1), torch.arange(100))
    with torch.random.fork_rng():
        theirs = nc_benchmark(
            data, data, 20, task_labels=True, seed=3, class_ids_from_zero_in_each_exp=True
        )
    order = class_order(100, 3)
    assert theirs.classes_order_original_ids == order
    # Within a task, label k is the k-th class of the order in both.
    assert [theirs.class_mapping[c] for c in order] == [0, 1, 2, 3, 4] * 20


def stock(kind: str, scenario: Scenario) -> Any:
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.models import MultiHeadClassifier, MultiTaskModule
    from avalanche.training import supervised
    from avalanche.training.plugins import EvaluationPlugin

    class Linear(MultiTaskModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
            self.heads = MultiHeadClassifier(32)

        def forward(self, x: torch.Tensor, task_labels: torch.Tensor) -> torch.Tensor:
            return self.heads(self.body(x), task_labels)

    torch.manual_seed(0)
    model = Linear()
    own = {"ewc_lambda": 1.0} if kind == "EWC" else {"mem_size": 50} if kind == "Replay" else {}
    return getattr(supervised, kind)(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=4,
        eval_mb_size=64,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True)),
        **own,
    )


@pytest.mark.parametrize("kind", ["Naive", "EWC", "Replay"])
def test_stock_strategies_train_on_the_stream(kind: str, scenario: Scenario) -> None:
    streams = scenario.benchmark(normalised=True).streams
    strategy = stock(kind, scenario)
    experiences = 1 if kind == "Naive" else 2
    for experience in streams["train"][:experiences]:
        strategy.train(experience, eval_streams=[])
    results = strategy.eval(streams["test"][:experiences])
    last = next(v for k, v in results.items() if f"Exp{experiences - 1:03d}" in k)
    assert last > 0.9


def test_a_strategy_evaluates_on_the_validation_stream(scenario: Scenario) -> None:
    streams = scenario.benchmark(normalised=True).streams
    strategy = stock("Naive", scenario)
    strategy.train(streams["train"][0], eval_streams=[streams["valid"][:1]])
    results = strategy.eval(streams["valid"][:1])
    assert next(v for k, v in results.items() if "Acc" in k) > 0.9
