"""Under autocast, layers work in bfloat16, but for one kind whose gradients are slow in it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from firefly_cl.network import FireflyNet


class Depthwise(nn.Module):
    """A depthwise convolution with a stride, behind one without."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.whole = nn.Conv2d(3, 4, 3, padding=1)
        self.each = nn.Conv2d(4, 4, 3, stride, 1, groups=4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.each(self.whole(x)).mean((2, 3)))
        return logits


@pytest.mark.parametrize("stride", [1, 2])
def test_strided_depthwise_convolutions_work_in_single_precision(stride: int) -> None:
    torch.manual_seed(0)
    net = FireflyNet.from_module(Depthwise(stride), torch.zeros(2, 3, 8, 8))
    layer = net.layers["each"]
    x = torch.randn(2, 4, 8, 8).bfloat16()
    weight, bias = torch.randn(4, 1, 3, 3), torch.randn(4)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.apply_weight(x, weight, bias)
    exact = F.conv2d(x.float(), weight, bias, stride, 1, 1, 4).bfloat16()
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact) == (stride == 2)
