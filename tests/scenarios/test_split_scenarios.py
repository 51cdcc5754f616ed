"""Digits and CIFAR streams: order, splits, determinism, options."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from firefly_cl.errors import ConfigurationError, DataError, UnknownName
from firefly_cl.scenarios import SCENARIOS, Images, Scenario, ScenarioOptions
from firefly_cl.scenarios.cut import Dataset, class_order, cut, groups_of


def build(name: str, **options: object) -> Scenario:
    return SCENARIOS.get(name)(ScenarioOptions(**options))  # type: ignore[arg-type]


def keys(images: Images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


def test_registry_lists_without_importing_torch() -> None:
    code = (
        "import sys; from firefly_cl.scenarios import SCENARIOS as S; "
        "print(*S.names(), sep='\\n'); [S.describe(n) for n in S.names()]; "
        "assert not {'torch', 'avalanche', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"image-folder", "split-cifar10", "split-cifar100", "split-cifar100-superclass"} | {
        "split-digits"
    } <= set(done.stdout.split())


def test_unknown_scenario_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'split-digits'"):
        SCENARIOS.get("splitdigit")


def test_digits() -> None:
    scenario = build("split-digits")
    assert [task.classes for task in scenario.tasks] == [
        (str(2 * k), str(2 * k + 1)) for k in range(5)
    ]
    assert scenario.image_shape == (1, 8, 8) and not scenario.flip
    sizes = [len(s) for t in scenario.tasks for s in (t.train, t.validation, t.test)]
    assert sum(sizes) == 1797
    for index, task in enumerate(scenario.tasks):
        assert task.index == task.train.task == task.validation.task == task.test.task == index
        for split in (task.train, task.validation, task.test):
            assert split.images.dtype == torch.uint8
            assert split.labels.unique().tolist() == [0, 1]
    pixels = torch.cat([t.train.images for t in scenario.tasks])
    assert int(pixels.max()) == 255 and int(pixels.min()) == 0


def test_labels_of_digits_name_the_right_class() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 1797 digits are all distinct, so an image's bytes identify its true class.
    true = {
        np.round(image * (255 / 16)).astype(np.uint8).tobytes(): str(target)
        for image, target in zip(digits.images, digits.target, strict=True)
    }
    assert len(true) == 1797
    for task in build("split-digits", n_tasks=3).tasks:
        for split in (task.train, task.validation, task.test):
            for image, label in zip(split.images, split.labels, strict=True):
                assert true[image.numpy().tobytes()] == task.classes[int(label)]


def test_validation_is_disjoint_and_stratified_and_test_never_leaks() -> None:
    scenario = build("split-digits", validation=0.2, seed=5)
    for task in scenario.tasks:
        train, validation, test = keys(task.train), keys(task.validation), keys(task.test)
        assert not train & validation and not train & test and not validation & test
        for label in (0, 1):
            held = int((task.validation.labels == label).sum())
            rest = int((task.train.labels == label).sum())
            assert held == round(0.2 * (held + rest))


def test_the_seed_decides_validation_but_never_test() -> None:
    one, again, other = (build("split-digits", seed=seed) for seed in (0, 0, 1))
    for a, b, c in zip(one.tasks, again.tasks, other.tasks, strict=True):
        assert torch.equal(a.train.images, b.train.images)
        assert torch.equal(a.validation.images, b.validation.images)
        assert keys(a.validation) != keys(c.validation)
        assert keys(a.train) | keys(a.validation) == keys(c.train) | keys(c.validation)
        assert torch.equal(a.test.images, c.test.images)


def test_no_validation() -> None:
    for task in build("split-digits", validation=0.0).tasks:
        assert len(task.validation) == 0 and task.validation.images.shape[1:] == (1, 8, 8)


def test_unequal_tasks() -> None:
    assert [len(t.classes) for t in build("split-digits", n_tasks=3).tasks] == [4, 3, 3]


def test_first_tasks_are_those_of_the_whole_stream() -> None:
    whole, first = build("split-digits"), build("split-digits", first_tasks=2)
    assert len(first.tasks) == 2 and first.mean == whole.mean
    assert torch.equal(first.tasks[1].train.images, whole.tasks[1].train.images)


def test_superclass_order_is_alphabetical(cifar100_folder: Path) -> None:
    scenario = build("split-cifar100-superclass", data_dir=cifar100_folder)
    assert [task.name for task in scenario.tasks] == [f"super{k:02d}" for k in range(20)]
    # The fixture numbers superclasses backwards: super00 is coarse label 19.
    assert scenario.tasks[0].classes == tuple(f"class{c:02d}" for c in (19, 39, 59, 79, 99))
    task = scenario.tasks[0]
    assert (len(task.train), len(task.validation), len(task.test)) == (45, 5, 10)
    assert task.test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert scenario.image_shape == (3, 32, 32) and scenario.flip


def test_pixels_keep_their_place(
    cifar100_folder: Path, cifar_arrays: Callable[[int], dict]
) -> None:
    arrays = cifar_arrays(100)
    task = build("split-cifar100-superclass", data_dir=cifar100_folder).tasks[0]
    first = arrays["test_images"][arrays["test_labels"] == 19][0]
    assert np.array_equal(task.test.images[0].permute(1, 2, 0).numpy(), first)


def test_mean_and_std_are_those_of_the_training_pixels(
    cifar100_folder: Path, cifar_arrays: Callable[[int], dict]
) -> None:
    scenario = build("split-cifar100", data_dir=cifar100_folder)
    pixels = cifar_arrays(100)["train_images"].reshape(-1, 3) / 255
    np.testing.assert_allclose(scenario.mean, pixels.mean(0), rtol=1e-9)
    np.testing.assert_allclose(scenario.std, pixels.std(0), rtol=1e-9)


def test_cifar100_classes_are_in_random_order_by_seed(cifar100_folder: Path) -> None:
    one, again, other = (
        build("split-cifar100", data_dir=cifar100_folder, seed=s, n_tasks=10) for s in (1, 1, 2)
    )
    classes = [[task.classes for task in s.tasks] for s in (one, again, other)]
    assert classes[0] == classes[1] != classes[2]
    assert [len(c) for c in classes[0]] == [10] * 10
    assert len({c for group in classes[0] for c in group}) == 100
    assert classes[0][0] == tuple(f"class{c:02d}" for c in class_order(100, 1)[:10])


def test_validation_of_a_class_does_not_depend_on_its_task(cifar100_folder: Path) -> None:
    held = [
        set().union(*(keys(t.validation) for t in build(n, data_dir=cifar100_folder).tasks))
        for n in ("split-cifar100", "split-cifar100-superclass")
    ]
    assert held[0] == held[1] and len(held[0]) == 100


def test_classes_hold_out_images_at_different_places() -> None:
    labels = torch.arange(40) // 20
    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1) % 20
    dataset = Dataset(images, labels, images, labels, ("a", "b"))
    held = cut("mine", dataset, [[0, 1]], ScenarioOptions(validation=0.25), flip=True)
    places = held.tasks[0].validation.images.flatten().tolist()
    assert len(places) == 10 and places[:5] != places[5:]


def test_cifar10_in_its_own_order(tmp_path: Path, cifar_arrays: Callable[[int], dict]) -> None:
    np.savez(tmp_path / "any-name.npz", **cifar_arrays(10))
    scenario = build("split-cifar10", data_dir=tmp_path / "any-name.npz")
    assert [t.classes for t in scenario.tasks][1] == ("class02", "class03")
    assert len(scenario.tasks) == 5


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("split-digits", {"n_tasks": 6}, DataError, "fewer than two classes: ask for 5 tasks"),
        ("split-digits", {"n_tasks": 0}, ConfigurationError, "n_tasks is 0"),
        ("split-digits", {"first_tasks": 6}, ConfigurationError, "split-digits has 5"),
        ("split-digits", {"first_tasks": 0}, ConfigurationError, "first_tasks is 0"),
        ("split-digits", {"validation": 1.0}, ConfigurationError, "validation is 1.0"),
        ("split-digits", {"seed": -1}, ConfigurationError, "seed is -1"),
        (
            "split-cifar100",
            {"n_tasks": 30},
            ConfigurationError,
            r"\(--split-into\) from 1, 2, 4, 5",
        ),
        ("split-cifar100", {"n_tasks": 100}, DataError, "fewer than two classes"),
        ("split-cifar100-superclass", {"n_tasks": 10}, ConfigurationError, "--split-into. out"),
    ],
)
def test_options_that_cannot_work(name: str, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        build(name, **options)
    assert "\n" not in str(raised.value)


def test_groups_cover_the_order() -> None:
    assert groups_of([3, 1, 2, 0, 4], 2) == [[3, 1, 2], [0, 4]]


def tiny(train_labels: list[int], test_labels: list[int]) -> Dataset:
    def images(n: int) -> torch.Tensor:
        return torch.zeros(n, 1, 4, 4, dtype=torch.uint8)

    return Dataset(
        images(len(train_labels)),
        torch.tensor(train_labels),
        images(len(test_labels)),
        torch.tensor(test_labels),
        ("a", "b", "c"),
    )


@pytest.mark.parametrize(
    ("train", "test", "groups", "message"),
    [
        ([0, 0, 1, 1], [0, 1, 2], [[0, 1, 2]], "class 'c' of mine has no training images"),
        ([0, 0, 1, 1], [0], [[0, 1]], "class 'b' of mine has no test images"),
        ([0, 0, 1], [0, 1], [[0, 1]], "class 'b' has a single training image"),
        ([0, 0, 1, 1], [0, 1], [[0], [1]], "task 0 of mine has 1 class"),
        ([0, 0, 1, 1], [0, 1], [[0, 1], []], "task 1 of mine has 0 class"),
    ],
)
def test_datasets_that_cannot_be_cut(
    train: list[int], test: list[int], groups: list, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        cut("mine", tiny(train, test), groups, ScenarioOptions(), flip=False)


def test_constant_pixels_do_not_divide_by_zero() -> None:
    scenario = cut("mine", tiny([0, 0, 1, 1], [0, 1]), [[0, 1]], ScenarioOptions(), flip=False)
    assert scenario.std == (1.0,)
