"""Batches: order, sizes, the one-image rest, devices' layouts and bad input."""

import pytest
import torch

from firefly_cl.errors import ConfigurationError, DataError
from firefly_cl.scenarios import Augmentation, Batches, Images, normalise


def numbered(n: int, task: int = 3) -> Images:
    """Images whose every pixel is the image's number, which is its label too."""
    labels = torch.arange(n)
    return Images(labels.byte().view(n, 1, 1, 1).expand(n, 2, 4, 4).contiguous(), labels, task)


def batches(images: Images, batch_size: int, seed: int = 0, **changes: object) -> Batches:
    options = {
        "mean": (0.0, 0.0),
        "std": (1 / 255, 1 / 255),
        "augmentation": None,
        "shuffle": False,
        "generator": torch.Generator().manual_seed(seed),
        "device": "cpu",
    }
    return Batches(images, batch_size, **{**options, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [
        (10, 4, [3, 3, 4]),
        (9, 4, [3, 3, 3]),
        (3, 2, [3]),
        (8, 4, [4, 4]),
        (3, 4, [3]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_sizes(n: int, batch_size: int, sizes: list[int]) -> None:
    loader = batches(numbered(n), batch_size)
    assert [len(x) for x, _, _ in loader] == sizes
    assert len(loader) == len(sizes)


def test_every_image_once_with_its_own_label_and_task() -> None:
    seen = []
    for x, y, t in batches(numbered(21), 5, shuffle=True):
        assert x.dtype == torch.float32 and y.dtype == t.dtype == torch.int64
        torch.testing.assert_close(x[:, 0, 0, 0], y.float())
        assert t.tolist() == [3] * len(y)
        seen += y.tolist()
    assert sorted(seen) == list(range(21)) != seen


def test_order_is_new_each_epoch_and_the_same_by_seed() -> None:
    def epochs(seed: int) -> list[list[int]]:
        loader = batches(numbered(30), 7, seed, shuffle=True)
        return [[int(label) for _, y, _ in loader for label in y] for _ in range(2)]

    first, second = epochs(1)
    assert first != second
    assert epochs(1) == [first, second]
    assert epochs(2) != [first, second]


def test_augmented_batches_are_the_same_by_seed() -> None:
    images = Images(torch.randint(0, 256, (40, 3, 8, 8)).byte(), torch.arange(40) % 2, 0)
    augmentation = Augmentation(crop_padding=2, jitter=0.2, cutout=3)

    def all_pixels(seed: int) -> torch.Tensor:
        options = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "augmentation": augmentation}
        return torch.cat([x for x, _, _ in batches(images, 16, seed, shuffle=True, **options)])

    assert torch.equal(all_pixels(0), all_pixels(0))
    assert not torch.equal(all_pixels(0), all_pixels(1))


def test_channels_last_changes_the_layout_only() -> None:
    (plain, *_), *_ = batches(numbered(4), 4)
    (last, *_), *_ = batches(numbered(4), 4, channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert torch.equal(plain, last)


def test_the_stored_images_are_not_changed() -> None:
    images = Images(torch.rand(6, 2, 4, 4), torch.arange(6) % 2, 0)
    before = images.images.clone()
    augmentation = Augmentation(crop_padding=0, flip=False, jitter=0.5, cutout=2)
    for changes in ({}, {"augmentation": augmentation}):
        for x, _, _ in batches(images, 6, **changes):
            x.zero_()
    assert torch.equal(images.images, before)


def test_images_of_several_tasks_keep_theirs() -> None:
    images = Images(numbered(6).images, torch.arange(6), -1, torch.tensor([0, 0, 1, 1, 2, 2]))
    for _, y, t in batches(images, 3, shuffle=True):
        assert torch.equal(t, y // 2)


def test_uint8_and_float_images_normalise_alike() -> None:
    stored = torch.randint(0, 256, (5, 3, 4, 4)).byte()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    torch.testing.assert_close(
        normalise(stored, mean, std), normalise(stored.float() / 255, mean, std)
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_pixels_are_found_at_construction(bad: float) -> None:
    pixels = torch.rand(5, 2, 4, 4)
    pixels[3, 1, 2, 2] = bad
    with pytest.raises(DataError, match="image 3 of task 7 has NaN or infinite pixels"):
        batches(Images(pixels, torch.arange(5), 7), 2)


def test_empty_split() -> None:
    with pytest.raises(DataError, match="task 3 has no images"):
        batches(numbered(0), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"mean": (0.0,)}, "images have 2 channels"), ({"std": (1.0, 0.0)}, "positive numbers")],
)
def test_statistics_that_do_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        batches(numbered(4), 2, **changes)


def test_batch_size_zero() -> None:
    with pytest.raises(ConfigurationError, match="batch_size is 0"):
        batches(numbered(4), 0)


@pytest.mark.parametrize("name", ["crop_padding", "cutout"])
def test_augmentation_that_leaves_nothing_of_an_image_is_refused(name: str) -> None:
    side = numbered(4).images.shape[-1]
    with pytest.raises(ConfigurationError, match=f"{name} is {side}, and images have sides"):
        batches(numbered(4), 2, augmentation=Augmentation(**{"crop_padding": 0, name: side}))
    batches(numbered(4), 2, augmentation=Augmentation(crop_padding=0, cutout=side - 1))
