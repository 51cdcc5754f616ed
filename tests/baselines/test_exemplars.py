"""Which images are kept, what is drawn from them, and that all of it is given back."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from firefly_cl.baselines.exemplars import Exemplars
from firefly_cl.baselines.replay import ClassBuffer
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup
from firefly_cl.scenarios import Augmentation, Images, Scenario, images_of, normalise
from firefly_cl.scenarios.stream import dataset_of


def images(counts: list[int], task: int) -> Images:
    """As many images of each class as told; each pixel says its class and number."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 2)
    return Images(pixels, labels, task)


def kept(exemplars: Exemplars) -> Counter[tuple[int, int]]:
    held = exemplars.images
    assert held is not None and held.tasks is not None
    return Counter(zip(held.tasks.tolist(), held.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        ("class", {(0, 0): 3, (0, 1): 8, (1, 0): 8, (1, 1): 8, (1, 2): 8}),
        ("task", {0: 18, 1: 17}),
        ("none", 35),
    ],
)
def test_balance(balance: str, expected: Any) -> None:
    torch.manual_seed(0)
    exemplars = Exemplars(35, balance)
    exemplars.add(images([3, 40], 0))
    assert len(exemplars) == 35
    exemplars.add(images([30, 30, 30], 1))
    assert len(exemplars) == 35
    found = kept(exemplars)
    if balance == "class":
        assert found == expected
    elif balance == "task":
        tasks = Counter[int]()
        for (task, _), count in found.items():
            tasks[task] += count
        assert sorted(tasks.values()) == sorted(expected.values())


def test_every_image_is_as_likely_to_stay() -> None:
    torch.manual_seed(0)
    stays = torch.zeros(3, 10)
    for _ in range(600):
        exemplars = Exemplars(6)
        for task in range(3):
            exemplars.add(images([10], task))
        held = exemplars.images
        assert held is not None and held.tasks is not None
        stays[held.tasks, held.images[:, 0, 0, 0].long()] += 1
    # 600 draws with probability 6 / 30: mean 120, standard deviation 9.8.
    assert stays.sum() == 3600
    assert 120 - 45 < stays.min() and stays.max() < 120 + 45


def test_logits_stay_with_their_images() -> None:
    torch.manual_seed(0)
    exemplars = Exemplars(20, "class")
    for task, counts in enumerate(([30, 30], [20, 20, 20])):
        new = images(counts, task)
        numbers = new.images[:, :1, 0, 0].float() + 100 * task
        exemplars.add(new, numbers.repeat(1, len(counts)))
    held, logits = exemplars.images, exemplars.logits
    assert held is not None and held.tasks is not None and logits is not None
    expected = held.images[:, 0, 0, 0] + 100.0 * held.tasks
    assert torch.equal(logits[:, 0], expected)
    absent = held.tasks == 0  # the first task has two classes
    assert torch.equal(logits[:, 2], expected.masked_fill(absent, -torch.inf))
    assert exemplars.nbytes() == 20 * (4 + 8 + 8 + 3 * 4)


@pytest.mark.parametrize("balance", ["none", "task", "class"])
def test_a_restored_memory_goes_on_as_the_first(balance: str) -> None:
    torch.manual_seed(0)
    one, other = Exemplars(12, balance), Exemplars(12, balance)
    one.add(images([9, 9], 0))
    other.restore({name: values.clone() for name, values in one.state().items()})
    for exemplars in (one, other):
        torch.manual_seed(1)
        exemplars.add(images([9, 9], 1))
    assert one.state().keys() == other.state().keys()
    for name, values in one.state().items():
        assert torch.equal(values, other.state()[name])


def test_replays_class_buffer_tells_tasks_apart() -> None:
    torch.manual_seed(0)
    buffer = ClassBuffer(30)
    for task, counts in enumerate(([20, 20], [20, 20, 20])):
        experience = SimpleNamespace(dataset=dataset_of(images(counts, task)))
        buffer.post_adapt(None, experience)
    held = images_of(buffer.buffer)
    pairs = Counter(zip(held.task_of_each().tolist(), held.labels.tolist(), strict=True))
    assert pairs == {(0, 0): 6, (0, 1): 6, (1, 0): 6, (1, 1): 6, (1, 2): 6}


@pytest.mark.parametrize("name", ["der", "er-ace", "agem", "gem"])
def test_recalled_images_are_never_mixed(
    name: str, digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    recipe = {"epochs": 1, "mixup": 0.4, "cutmix": 0.5, "augmentation": Augmentation(0, False)}
    learner: Any = STRATEGIES.get(name)(setup_for(digits, recipe=recipe))
    stream = digits.benchmark().train_stream
    learner.train(stream[0])
    plugin = learner.strategy.plugins[0]
    assert set(plugin.exemplars.images.tasks.tolist()) == {0}
    train = digits.tasks[0].train
    assert len(plugin.exemplars) == len(train)
    calls: list[int] = []
    draw = plugin.exemplars.batches

    def spy(*arguments: Any, **named: Any) -> Any:
        plain = normalise(plugin.exemplars.images.images, digits.mean, digits.std)
        for x, chosen in draw(*arguments, **named):
            torch.testing.assert_close(x, plain[chosen])
            calls.append(len(chosen))
            assert learner.strategy._criterion.mixture is not None or name in ("agem", "gem")
            yield x, chosen

    plugin.exemplars.batches = spy
    learner.train(stream[1])
    assert len(calls) == -(-len(digits.tasks[1].train) // 64)


def test_recalled_images_are_augmented(digits: Scenario, setup_for: Callable[..., Setup]) -> None:
    setup = setup_for(digits, recipe={"augmentation": Augmentation(2, True)})
    exemplars = Exemplars(40)
    exemplars.add(dataclasses.replace(digits.tasks[0].train))
    x, chosen = next(exemplars.batches(setup, 1, 16))
    assert exemplars.images is not None
    plain: Tensor = normalise(exemplars.images.images[chosen], digits.mean, digits.std)
    same = [torch.equal(a, b) for a, b in zip(x, plain, strict=True)]
    assert len(x) <= 16 and sum(same) < len(same) / 2
