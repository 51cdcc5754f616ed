"""What layers do where a kernel is slow or wrong: in bfloat16, and with channels last."""

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


def test_a_strided_depthwise_convolution_works_in_single_precision() -> None:
    torch.manual_seed(0)
    net = FireflyNet.from_module(Depthwise(2), torch.zeros(2, 3, 8, 8))
    layer = net.layers["each"]
    x, weight, bias = torch.randn(2, 4, 8, 8), torch.randn(4, 1, 3, 3), torch.randn(4)
    x, rounded, shift = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.apply_weight(x, weight, bias)
        frozen = layer.apply_weight(x, rounded, shift)  # these are kept rounded
    exact = F.conv2d(x.float(), rounded.float(), shift.float(), 2, 1, 1, 4)
    assert torch.equal(found, exact.bfloat16())
    assert torch.equal(found, frozen)


def gradients(
    channels: int, padding: int | tuple[int, int] | str, layout: torch.memory_format
) -> list[torch.Tensor]:
    """Of a network with a strided pointwise convolution of so many channels."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.Conv2d(channels, 9, 1, stride=2, padding=padding),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(9, 2),
    )
    net = FireflyNet.from_module(model, torch.zeros(2, 3, 8, 8)).to(memory_format=layout)
    x = torch.randn(64, 3, 8, 8).contiguous(memory_format=layout)
    F.cross_entropy(net(x), torch.arange(64) % 2).backward()
    return [value.grad.contiguous() for value in net.parameters() if value.grad is not None]


@pytest.mark.parametrize("padding", [0, 1, (1, 0), "valid"])
@pytest.mark.parametrize("channels", [1, 4, 5, 12, 16])
def test_strided_pointwise_convolutions_are_right_with_channels_last(
    channels: int, padding: int | tuple[int, int] | str
) -> None:
    """oneDNN writes past its buffers there where a layer has fewer channels than its blocks."""
    for found, exact in zip(
        gradients(channels, padding, torch.channels_last),
        gradients(channels, padding, torch.contiguous_format),
        strict=True,
    ):
        torch.testing.assert_close(found, exact)
