"""Batch norm in training, also of channels that do not fill a processor's vectors.

Where channels lie beside each other in memory (channels_last), torch's own on CPUs goes through a
remainder of channels number by number: thin layers, which have grown to some odd width, wait for
it longer than for their convolutions. It also sums in a way that loses digits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_LANES = {"AVX2": 8, "AVX512": 16}
"""Numbers in a vector, by what torch calls the processor's capability."""

_FEW = 32
"""Channels from which on a remainder no longer matters."""

_ROW = 2048
"""Most numbers of a row below: one that stays in the first-level cache."""


def batch_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Normalise x (B, C, ...) by its own statistics, and let those in `mean` and `var` follow.

    Ioffe and Szegedy 2015, arXiv 1502.03167. weight and bias (C,) may be None together. What
    F.batch_norm gives, up to rounding.
    """
    if weight is None or bias is None or not _has_remainder(x):
        return F.batch_norm(x, mean, var, weight, bias, True, momentum, eps)
    out, found, spread = _BatchNorm.apply(x, weight, bias, eps)
    with torch.no_grad():
        n = x.numel() / x.shape[1]
        mean.lerp_(found, momentum)
        var.lerp_(spread * (n / (n - 1)), momentum)  # unbiased, as torch keeps it
    normalised: Tensor = out
    return normalised


def _has_remainder(x: Tensor) -> bool:
    """Whether torch's own batch norm of these images is slow."""
    lanes = _LANES.get(torch.backends.cpu.get_cpu_capability(), 1)
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.dim() == 4
        and x.shape[1] < _FEW
        and x.shape[1] % lanes > 0
        and x.numel() > x.shape[1]  # one value has no spread: an error of torch's
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")  # sums would be of bfloat16
    )


class _BatchNorm(Function):
    """Rows of several pixels, all their channels, are long enough to be worked on as vectors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The normalised images, and mean and variance (C,)."""
        rows, n = _rows(x), x.numel() / x.shape[1]
        repeat = rows.shape[1] // x.shape[1]
        mean = _sums(rows, x.shape[1]) / n
        centred = rows - mean.repeat(repeat)
        var = _sums(centred.square(), x.shape[1]) / n
        inverse = (var + eps).rsqrt()
        out = torch.addcmul(bias.repeat(repeat), centred, (weight * inverse).repeat(repeat))
        ctx.save_for_backward(centred, weight, inverse)
        ctx.mark_non_differentiable(mean, var)
        return _images(out, x), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Of the images, weight and bias."""
        centred, weight, inverse = ctx.saved_tensors
        rows, channels = _rows(gradient), len(weight)
        repeat, n = rows.shape[1] // channels, rows.numel() / channels
        total = _sums(rows, channels)
        along = _sums(rows * centred, channels)
        scale = weight * inverse
        of_x = torch.addcmul(
            (-scale * total / n).repeat(repeat),
            centred,
            (-scale * inverse.square() * along / n).repeat(repeat),
        )
        of_x.addcmul_(rows, scale.repeat(repeat))
        return _images(of_x, gradient), along * inverse, total, None


def _rows(x: Tensor) -> Tensor:
    """Images (B, C, H, W) as (pixels / k, k C), without a copy where they are channels_last."""
    channels = x.shape[1]
    pixels, k = x.numel() // channels, 1
    while pixels % (2 * k) == 0 and 2 * k * channels <= _ROW:
        k *= 2
    return x.permute(0, 2, 3, 1).reshape(pixels // k, k * channels)


def _images(rows: Tensor, like: Tensor) -> Tensor:
    batch, channels, *sides = like.shape
    return rows.view(batch, *sides, channels).permute(0, 3, 1, 2)


def _sums(rows: Tensor, channels: int) -> Tensor:
    """Sums over all pixels, (channels,)."""
    return (rows.new_ones(1, len(rows)) @ rows).view(-1, channels).sum(0)
