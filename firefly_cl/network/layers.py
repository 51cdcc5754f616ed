"""Growable layers: stacks of row blocks, one for each task that has units in the layer's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firefly_cl.network.batch_norm import batch_norm
from firefly_cl.network.graph import Node
from firefly_cl.network.space import Layout, Selection, channel_count, positions

_CACHE = 2**20
"""Bytes of weights that fit the second-level cache beside what they are multiplied with."""

UnitsOf = Callable[[int], Selection]
"""Some units for each owner: its own, or those that its rows read (selected older ones, own)."""


def overruns(kernel: Iterable[int], stride: Iterable[int], channels: int) -> bool:
    """Whether oneDNN may write past its buffers in a convolution of channels_last images.

    In float32 on CPUs the gradient of a strided pointwise convolution of fewer channels than its
    blocks have is wrong, or crashes (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    return channels < 16 and set(kernel) == {1} and max(stride) > 1


def read_points(x: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The points of x (B, C, H, W) that a pointwise convolution with this geometry reads."""
    if any(padding):
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    return x[..., :: stride[0], :: stride[1]]


class Block(nn.Module):
    """The rows of one layer that one task owns.

    from_old: (rows, columns of older units, ...), from_own: (rows, columns of own units, ...),
    bias: (rows,) or None. A layer that works unit by unit (depthwise, grouped) has only from_own.
    """

    def __init__(self, from_old: Tensor, from_own: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.from_old = nn.Parameter(from_old)
        self.from_own = nn.Parameter(from_own)
        self.bias = nn.Parameter(bias) if bias is not None else None

    @property
    def rows(self) -> int:
        """Output channels of the block."""
        return self.from_own.shape[0]


class GrowableLayer(nn.Module):
    """A Conv2d or Linear made of row blocks; `heads` are such layers with rows for classes.

    A layer that is_residual only adds to what is there, so that it may have nothing to read.
    """

    def __init__(self, node: Node, reads: Layout) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict()
        self.reads = reads
        self.writes = node.layout
        self.is_conv = node.kind == "conv"
        self.is_head = node.kind == "head"
        self.has_bias = bool(node.attributes["bias"])
        self.per_unit = bool(node.attributes["per_unit"])
        self.is_residual = bool(node.attributes.get("residual", False))
        self.kernel: tuple[int, ...] = tuple(node.attributes.get("kernel", ()))
        self.stride: tuple[int, ...] = tuple(node.attributes.get("stride", ()))
        padding = node.attributes.get("padding", ())
        self.padding: str | tuple[int, ...] = (
            padding if isinstance(padding, str) else tuple(padding)
        )
        self.dilation: tuple[int, ...] = tuple(node.attributes.get("dilation", ()))

    def block(self, owner: int) -> Block | None:
        """The rows of `owner`, if it has any."""
        name = str(owner)
        return self.blocks[name] if name in self.blocks else None  # type: ignore[return-value]

    @property
    def columns_per_unit(self) -> int:
        """Input channels of one unit, in a layer that works unit by unit."""
        return self.reads[0].repeat

    def add_block(
        self, owner: int, rows: int, old: int, own: int, like: Tensor, generator: torch.Generator
    ) -> Block:
        """Append `rows` rows over `old` + `own` columns, He-initialised over all of them.

        He et al. 2015, arXiv 1502.01852: standard deviation sqrt(2 / fan_in). A head gets
        sqrt(1 / fan_in).
        """
        if self.per_unit:
            old, own = 0, self.columns_per_unit
        fan_in = (old + own) * math.prod(self.kernel)
        scale = math.sqrt((1.0 if self.is_head else 2.0) / max(fan_in, 1))
        weight = torch.randn(rows, old + own, *self.kernel, generator=generator) * scale
        weight = weight.to(like)
        bias = torch.zeros(rows).to(like) if self.has_bias else None
        block = Block(weight[:, :old].clone(), weight[:, old:].clone(), bias)
        self.blocks[str(owner)] = block
        return block

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's operation with any weight over the channels of `x`."""
        if not self.is_conv:
            return F.linear(x, weight, bias)
        groups = x.shape[1] // weight.shape[1] if self.per_unit else 1
        padding = self.padding if isinstance(self.padding, str) else list(self.padding)
        on_cpu = x.device.type == "cpu"
        if on_cpu and overruns(self.kernel, self.stride, x.shape[1]):
            sides = (0, 0) if isinstance(padding, str) else padding  # of one point, none is same
            return F.conv2d(read_points(x, self.stride, sides), weight, bias, groups=groups)
        # On a CPU, gradients of a strided depthwise convolution take ten times as long in bfloat16.
        slow = self.per_unit and max(self.stride) > 1 and on_cpu
        if slow and torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")  # frozen weights are rounded already
            x, weight = x.to(dtype).float(), weight.to(dtype).float()
            bias = None if bias is None else bias.to(dtype).float()
            with torch.autocast("cpu", enabled=False):
                out = F.conv2d(x, weight, bias, self.stride, padding, self.dilation, groups)
            return out.to(dtype)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, groups)

    def apply_frozen(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`apply_weight`, in pieces that stay in a CPU core's cache.

        A convolution by a large weight over small maps would read all of it for every image.
        """
        row = max(weight[0].numel() * weight.element_size(), 1)
        rows = max(_CACHE // row // 32, 1) * 32
        if not self.is_conv or self.per_unit or x.device.type != "cpu" or len(weight) <= rows:
            return self.apply_weight(x, weight, bias)
        pieces = torch.split(weight, rows)
        biases = [None] * len(pieces) if bias is None else torch.split(bias, rows)
        return torch.cat(
            [self.apply_weight(x, *piece) for piece in zip(pieces, biases, strict=True)], 1
        )

    def new_rows(self, owner: int, old: Tensor | None, own: Tensor | None) -> Tensor | None:
        """Output of the rows of `owner`; None if it has none.

        old, own: channels that its columns read. Only `own` carries a gradient upstream.
        """
        block = self.block(owner)
        if block is None or not block.rows:
            return None
        out = None
        if own is not None and block.from_own.shape[1]:
            out = self.apply_weight(own, block.from_own, block.bias)
        if old is not None and block.from_old.shape[1]:
            bias = block.bias if out is None else None
            through_old = self.apply_weight(old, block.from_old, bias)
            out = through_old if out is None else out + through_old
        return out

    def assemble(
        self,
        owners: Iterable[int],
        rows: Selection,
        columns: Selection,
        reads: UnitsOf,
        owned: UnitsOf,
    ) -> tuple[Tensor, Tensor | None]:
        """The blocks of `owners` as one dense weight over selected units, for one fast call.

        rows, columns: units that the output and the input hold. Where an older unit would read
        a newer one stands zero. Returns (weight, bias or None).
        """
        like = next(self.parameters())
        n_rows = channel_count(self.writes, rows)
        if self.per_unit:
            n_columns = self.columns_per_unit
        else:
            n_columns = channel_count(self.reads, columns)
        weight = like.new_zeros(n_rows, n_columns, *self.kernel)
        bias = like.new_zeros(n_rows) if self.has_bias else None
        for owner in owners:
            block = self.block(owner)
            if block is None:
                continue
            at, kept = positions(self.writes, rows, owned(owner))
            at, kept = at[kept].to(like.device), kept.to(like.device)
            if self.per_unit:
                weight[at] = block.from_own.detach()[kept]
            else:
                columns_at, there = positions(self.reads, columns, reads(owner))
                there = there.to(like.device)
                whole = self.whole_rows(owner, reads, owned)[kept]
                weight[at[:, None], columns_at.to(like.device)[there]] = whole[:, there]
            if bias is not None and block.bias is not None:
                bias[at] = block.bias.detach()[kept]
        return weight, bias

    def whole_rows(self, owner: int, reads: UnitsOf, owned: UnitsOf) -> Tensor:
        """The rows of `owner` over everything they read, in the order of the layout."""
        block = self.block(owner)
        assert block is not None
        parts, old_at, own_at = [], 0, 0
        for segment in self.reads:
            own = len(owned(owner)[segment.space]) * segment.repeat
            old = len(reads(owner)[segment.space]) * segment.repeat - own
            parts.append(block.from_old.detach()[:, old_at : old_at + old])
            parts.append(block.from_own.detach()[:, own_at : own_at + own])
            old_at, own_at = old_at + old, own_at + own
        return torch.cat(parts, 1)


class NormBlock(nn.Module):
    """Batch-norm parameters and statistics of the channels that one task owns."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, affine: bool, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(like.new_ones(channels)) if affine else None
        self.bias = nn.Parameter(like.new_zeros(channels)) if affine else None
        self.register_buffer("running_mean", like.new_zeros(channels))
        self.register_buffer("running_var", like.new_ones(channels))


@dataclass
class Statistics:
    """What a norm applies in evaluation, (channels,) each."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None


class GrowableNorm(nn.Module):
    """A BatchNorm1d or BatchNorm2d made of blocks, one for each owner of its channels."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict()
        self.writes = node.layout
        self.eps = float(node.attributes["eps"])
        self.momentum = float(node.attributes["momentum"])
        self.affine = bool(node.attributes["affine"])

    def block(self, owner: int) -> NormBlock | None:
        """The channels of `owner`, if it has any."""
        name = str(owner)
        return self.blocks[name] if name in self.blocks else None  # type: ignore[return-value]

    def add_block(self, owner: int, channels: int, like: Tensor) -> NormBlock:
        """Append channels with unit statistics and an affine map that changes nothing."""
        block = NormBlock(channels, self.affine, like)
        self.blocks[str(owner)] = block
        return block

    def evaluate(self, x: Tensor, by: Statistics) -> Tensor:
        """Normalise with given statistics."""
        return F.batch_norm(x, by.mean, by.var, by.weight, by.bias, False, 0.0, self.eps)

    def new_channels(self, owner: int, x: Tensor, training: bool) -> Tensor:
        """Normalise the channels of `owner`, with batch statistics in training."""
        block = self.block(owner)
        assert block is not None
        mean, var = block.running_mean, block.running_var
        if not training:
            return self.evaluate(x, Statistics(mean, var, block.weight, block.bias))
        return batch_norm(x, mean, var, block.weight, block.bias, self.momentum, self.eps)

    def restated(self, by: Statistics, mean: Tensor, var: Tensor) -> Statistics:
        """The function of `by` with other statistics, its affine map making up for them.

        Without an affine map nothing can make up for them, and `by` comes back.
        """
        if by.weight is None or by.bias is None:
            return by
        mean, var = mean.to(by.mean), var.to(by.var)
        slope = by.weight * (by.var + self.eps).rsqrt()
        return Statistics(
            mean, var, slope * (var + self.eps).sqrt(), by.bias + slope * (mean - by.mean)
        )

    def assemble(self, owners: Iterable[int], channels: Selection, owned: UnitsOf) -> Statistics:
        """Statistics of the blocks of `owners`, over selected units."""
        like = next(b.running_mean for b in self.blocks.values() if isinstance(b, NormBlock))
        n = channel_count(self.writes, channels)
        mean, var = like.new_zeros(n), like.new_ones(n)
        weight = like.new_ones(n) if self.affine else None
        bias = like.new_zeros(n) if self.affine else None
        for owner in owners:
            block = self.block(owner)
            if block is None:
                continue
            at, kept = positions(self.writes, channels, owned(owner))
            at, kept = at[kept].to(like.device), kept.to(like.device)
            mean[at], var[at] = block.running_mean[kept], block.running_var[kept]
            if weight is not None and bias is not None:
                assert block.weight is not None and block.bias is not None
                weight[at] = block.weight.detach()[kept]
                bias[at] = block.bias.detach()[kept]
        return Statistics(mean, var, weight, bias)
