"""Images and their materialisation from any dataset."""

import pytest
import torch
from torch.utils.data import TensorDataset

from firefly_cl.errors import DataError
from firefly_cl.scenarios import Images, images_of
from firefly_cl.scenarios.images import LabelledImages


def test_images_of_two_and_three_part_items() -> None:
    pixels, labels = torch.randint(0, 256, (6, 1, 4, 4)).byte(), torch.arange(6) % 3
    plain = images_of(TensorDataset(pixels, labels))
    assert torch.equal(plain.images, pixels) and plain.images.dtype == torch.uint8
    assert torch.equal(plain.labels, labels) and plain.task == 0 and plain.tasks is None
    with_task = images_of(TensorDataset(pixels, labels, torch.full((6,), 4)))
    assert with_task.task == 4 and with_task.tasks is None
    mixed = images_of(TensorDataset(pixels, labels, torch.tensor([0, 0, 1, 1, 2, 2])))
    assert mixed.task == -1 and mixed.tasks is not None
    assert mixed.tasks.tolist() == [0, 0, 1, 1, 2, 2]


def test_images_of_our_own_view_shares_memory() -> None:
    images = Images(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 1]), 2)
    assert images_of(LabelledImages(images)) is images


def test_evaluation_transforms_are_preferred() -> None:
    class Augmented(TensorDataset):
        def eval(self) -> TensorDataset:
            return TensorDataset(*self.tensors)

        def __getitem__(self, index: int) -> tuple:
            x, y = super().__getitem__(index)
            return x + 1, y

    pixels = torch.zeros(2, 1, 4, 4)
    assert torch.equal(images_of(Augmented(pixels, torch.tensor([0, 1]))).images, pixels)


def test_images_of_double_precision() -> None:
    dataset = TensorDataset(torch.rand(2, 1, 4, 4).double(), torch.tensor([0, 1]))
    assert images_of(dataset).images.dtype == torch.float32


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "the dataset is empty: leave"),
        ([("picture", 0)], r"holds a str, expected \(tensor, label"),
        ([torch.zeros(1, 4, 4)], "holds a Tensor, expected"),
        ([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 5, 4), 1)], "image 1 is .* resize"),
        ([(torch.zeros(4, 4), 0)], r"shape \(1, 4, 4\), expected \(n, channels"),
        ([(torch.zeros(1, 4, 4, dtype=torch.int32), 0)], "images are torch.int32"),
        ([(torch.zeros(1, 4, 4), -1)], "smallest label is -1"),
        ([(torch.full((1, 4, 4), torch.nan), 0)], "image 0 of task 0 has NaN"),
    ],
)
def test_items_that_cannot_be_used(items: list, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        images_of(items)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(2, dtype=torch.int64)])
def test_labels_of_wrong_type_or_shape(labels: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"labels are .* one whole number for each image"):
        Images(torch.zeros(3, 1, 4, 4), labels, 0)


def test_a_single_class_is_no_task() -> None:
    one = Images(torch.zeros(3, 1, 4, 4), torch.ones(3, dtype=torch.int64), 5)
    with pytest.raises(DataError, match="task 5 has images of a single class"):
        one.require_classes()
    two = Images(one.images, torch.tensor([0, 1, 1]), 5)
    assert two.require_classes() is two
