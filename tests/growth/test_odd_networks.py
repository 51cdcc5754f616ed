"""Growth of models with layers that nothing reads, and with pooling that has no mean."""

from __future__ import annotations

import pytest
import torch
from small_search import SMALL_SEARCH
from torch import Tensor, nn
from torch.nn import functional

from firefly_cl.errors import EditError
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.criterion import criterion_of
from firefly_cl.network import FireflyNet


class Unread(nn.Module):
    """Two layers before the head, of which the second is computed for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        self.b(x)
        logits: Tensor = self.head(x)
        return logits


class Dilated(nn.Module):
    """Two convolutions with a dilated maximum between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2, dilation=2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.pool(self.a(x).relu())).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def batches(*shape: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(16, *shape, generator=generator), torch.arange(16) % 2] for _ in range(4)]


@pytest.mark.parametrize("name", CRITERIA.names())
def test_what_nothing_reads_does_not_grow(name: str) -> None:
    settings = SMALL_SEARCH if name == "firefly" else {}
    net = FireflyNet.from_module(Unread(), torch.zeros(2, 6))
    generator = torch.Generator().manual_seed(0)
    growth = criterion_of(name, settings).grow(net, batches(6), loss, Budget(3), generator)
    assert set(growth.by_space()) == {"a"}


@pytest.mark.parametrize("name", ["gradmax", "tiny"])
def test_a_dilated_maximum_is_refused_by_name(name: str) -> None:
    net = FireflyNet.from_module(Dilated(), torch.zeros(2, 3, 9, 9))
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(EditError, match="pool takes maxima with a dilation"):
        criterion_of(name, {}).grow(net, batches(3, 9, 9), loss, Budget(3), generator)
