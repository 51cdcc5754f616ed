"""New units beside kept passes of the network: what they read and where they are read is held.

A new unit that contributes nothing yet changes neither the activations that its rows read nor
the loss's gradient where it is read. Both are computed once; afterwards new units are run alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

from firefly_cl.growth.candidates import WiderCandidates
from firefly_cl.growth.criterion import Loss, finite
from firefly_cl.growth.execution import CandidateExecution, batch_statistics
from firefly_cl.network import FireflyNet
from firefly_cl.network.execution import Execution, Streams
from firefly_cl.network.graph import Node
from firefly_cl.network.layers import GrowableLayer, GrowableNorm, Statistics, overruns, read_points


class Watching(Execution):
    """The newest task's pass, keeping what layers read and the output of the task's own rows."""

    def __init__(self, net: FireflyNet) -> None:
        super().__init__(net, net.current)
        self.reads: dict[str, Streams] = {}
        self.outputs: dict[str, Tensor] = {}
        self.slopes: dict[str, Tensor] = {}

    def layer(self, node: Node, value: Streams) -> Streams:
        """A layer, watched."""
        return self._keep(node, value, super().layer(node, value))

    def head(self, node: Node, value: Streams) -> Streams:
        """The head, watched."""
        return self._keep(node, value, super().head(node, value))

    def _keep(self, node: Node, value: Streams, out: Streams) -> Streams:
        self.reads[node.name] = {name: lay_out(part.detach()) for name, part in value.items()}
        if "new" in out:
            self.outputs[node.name] = out["new"]
        return out


def lay_out(x: Tensor) -> Tensor:
    """Maps with channels last, which convolutions of few channels are much faster on."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


class Surroundings:
    """Passes of the network on some batches, with dL/d output of the newest task's own rows.

    Raises DivergenceError for a loss that is not finite.
    """

    def __init__(self, net: FireflyNet, batches: Sequence[Any], loss: Loss) -> None:
        self.net = net
        self.batches = len(batches)
        self.passes: list[Watching] = []
        for batch in batches:
            watched: list[Watching] = []

            def model(x: Tensor, watched: list[Watching] = watched) -> Tensor:
                watched.append(Watching(net))
                return watched[-1].run(x)

            value = finite(loss(model, batch))
            outputs = [out for seen in watched for out in seen.outputs.values()]
            found = iter(torch.autograd.grad(value, outputs, allow_unused=True))
            for seen in watched:
                slopes = {name: next(found) for name in seen.outputs}
                seen.slopes = {k: lay_out(v) for k, v in slopes.items() if v is not None}
                seen.outputs = {}
            self.passes += watched

    def slopes(
        self, candidates: WiderCandidates, execution: type[NewUnits] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Mean dL/d outgoing of new units that contribute nothing, by space and consumer.

        As functions of their rows, in shapes of the outgoing weights; gates count as 1.
        """
        execution = execution or NewUnits
        mean = {
            space: {name: torch.zeros_like(columns) for name, columns in made.outgoing.items()}
            for space, made in candidates.items()
        }
        for seen in self.passes:
            units = execution(self.net, candidates, seen)
            for (space, name), slope in units.outgoing_slopes().items():
                mean[space][name] = mean[space][name] + slope / self.batches
        return mean


class NewUnits(CandidateExecution):
    """New units alone, beside a pass that was watched."""

    def __init__(self, net: FireflyNet, candidates: WiderCandidates, seen: Watching) -> None:
        super().__init__(net, candidates)
        self.seen = seen
        self.found: dict[tuple[str, str], Tensor] = {}

    def outgoing_slopes(self) -> dict[tuple[str, str], Tensor]:
        """dL/d outgoing of the new units by (space, consumer)."""
        values: dict[str, Streams] = {}
        for node in self.net.nodes:
            values[node.name] = self.step(node, [values[name] for name in node.inputs])
            for done in self.net.last_uses[node.name]:
                del values[done]
        return self.found

    def step(self, node: Node, inputs: Sequence[Streams]) -> Streams:
        """One node on new units."""
        return {} if node.kind == "input" else super().step(node, inputs)

    def layer(self, node: Node, value: Streams) -> Streams:
        """Rows of new units, from what was read; the task's own rows take what they are given."""
        layer = self.growable(node)
        if not layer.per_unit:
            self._arrive(node, layer, value)
            value = self.seen.reads[node.name]
        rows = self.ghost_rows(node, layer, value, "ghost", None)
        return {} if rows is None else {"ghost": rows}

    def head(self, node: Node, value: Streams) -> Streams:
        """The head takes what it is given."""
        self._arrive(node, self.growable(node), value)
        return {}

    def _ghost_norm(self, node: Node, norm: GrowableNorm, x: Tensor) -> Tensor:
        """By the statistics of the batch: all of them are new."""
        return F.batch_norm(x, None, None, None, None, True, 0.0, norm.eps)

    def _arrive(self, node: Node, layer: GrowableLayer, value: Streams) -> None:
        slope = self.seen.slopes.get(node.name)
        if slope is None or "ghost" not in value:
            return
        for space, _, _, _, news in self._cut(layer, value["ghost"]):
            self.found[space, node.name] = weight_slope(layer, news, slope)


class MeasuredUnits(NewUnits):
    """New units that keep the statistics they have in the last pass, to be committed with them."""

    def _ghost_norm(self, node: Node, norm: GrowableNorm, x: Tensor) -> Tensor:
        mean, var = batch_statistics(x)
        base = 0
        for segment in norm.writes:
            made = self.spaces.get(segment.space)
            if made is not None:
                at = slice(base, base + made.news * segment.repeat)
                made.statistics[node.name] = Statistics(mean[at].to(x), var[at].to(x), None, None)
                base = at.stop
        return super()._ghost_norm(node, norm, x)


def weight_slope(layer: GrowableLayer, x: Tensor, slope: Tensor) -> Tensor:
    """d<slope, layer(x)> / d weight, a function of x; slope: (B, rows, ...)."""
    if not layer.is_conv:
        return slope.T @ x
    padding = layer.padding
    if isinstance(padding, str):
        total = [
            d * (k - 1) if padding == "same" else 0
            for d, k in zip(layer.dilation, layer.kernel, strict=True)
        ]
        sides = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
        x, padding = F.pad(x, sides), (0, 0)
    stride = layer.stride
    if x.device.type == "cpu" and overruns(layer.kernel, stride, x.shape[1]):
        x, stride, padding = read_points(x, stride, padding), (1, 1), (0, 0)
    geometry = layer.kernel, stride, padding, layer.dilation
    found: Tensor = _ConvWeightSlope.apply(x, slope, *geometry)
    return found


class _ConvWeightSlope(torch.autograd.Function):
    """As torch's, with a faster gradient for the input: a plain convolution where it can be one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        slope: Tensor,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> Tensor:
        ctx.save_for_backward(slope)
        ctx.shape, ctx.geometry = x.shape, (stride, padding, dilation)
        size = (slope.shape[1], x.shape[1], *kernel)
        found: Tensor = conv2d_weight(x, size, slope, *ctx.geometry)  # type: ignore[no-untyped-call]
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,), (weight,) = ctx.saved_tensors, gradients
        stride, padding, dilation = ctx.geometry
        left = [
            d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)
        ]
        if max(stride) > 1 or min(left) < 0:
            found = conv2d_input(ctx.shape, weight, slope, *ctx.geometry)  # type: ignore[no-untyped-call]
        else:
            turned = weight.transpose(0, 1).flip(2, 3)
            found = F.conv2d(slope, turned, None, 1, left, dilation)
        return found, None, None, None, None, None
