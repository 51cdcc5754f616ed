"""The network with its newest task's units behind gates."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from firefly_cl.gates.scaled_sigmoid import Gates
from firefly_cl.network import FireflyNet
from firefly_cl.network.execution import Execution, Streams
from firefly_cl.network.graph import POOLINGS, Node
from firefly_cl.network.layers import GrowableNorm

SILENT = POOLINGS | {
    *("relu", "relu6", "leaky_relu", "elu", "celu", "selu"),
    *("gelu", "silu", "mish", "hardswish", "tanh"),
}
"""Maps that leave a channel of zeros as it is."""


class GatedExecution(Execution):
    """The newest task's function with each of its units multiplied by its gate.

    With all gates 1 it is the task's function; a unit whose gate is 0 is as good as pruned.
    by_batch: normalise the task's own channels by the batch, in evaluation too; running statistics
    rest.
    """

    def __init__(self, net: FireflyNet, gates: Gates, by_batch: bool = False) -> None:
        super().__init__(net, net.current)
        self.by_batch = by_batch
        self.gates = gates.values()
        self.gated = gated_nodes(net, self.gates)

    def step(self, node: Node, inputs: Sequence[Streams]) -> Streams:
        """One node on every stream, the task's own units behind their gates."""
        out = super().step(node, inputs)
        if node.name not in self.gated or "new" not in out:
            return out
        new = out["new"]
        gate = self.channel_gates(node, new)
        return {**out, "new": new * gate.view(1, -1, *[1] * (new.dim() - 2))}

    def norm(self, node: Node, value: Streams) -> Streams:
        """A batch norm, the task's own channels by their statistics or by those of the batch."""
        if not self.by_batch or "new" not in value:
            return super().norm(node, value)
        norm = self.net.layers[node.name]
        assert isinstance(norm, GrowableNorm)
        block = norm.block(self.task)
        assert block is not None
        old = {stream: x for stream, x in value.items() if stream != "new"}
        affine = block.weight, block.bias
        new = F.batch_norm(value["new"], None, None, *affine, True, 0.0, norm.eps)
        return {**super().norm(node, old), "new": new}

    def channel_gates(self, node: Node, like: Tensor) -> Tensor:
        """The gate of each own channel of a node; 1 where its space has none."""
        parts = []
        for segment in node.layout:
            gate = self.gates.get(segment.space)
            if gate is None:
                gate = like.new_ones(self.net.spaces[segment.space].width(self.task))
            parts.append(gate.repeat_interleave(segment.repeat))
        return torch.cat(parts).to(like.dtype)


def gated_nodes(net: FireflyNet, spaces: Collection[str]) -> frozenset[str]:
    """Nodes behind which gates of some spaces stand: wherever a silent unit would speak again.

    These are the layers that write a unit, or the norm behind them, whose shift is gated too;
    each side of a residual sum has its own. An activation without a zero at zero has a gate behind
    it as well.
    """
    users: dict[str, list[str]] = {node.name: [] for node in net.nodes}
    for node in net.nodes:
        for name in node.inputs:
            users[name].append(node.kind)
    return frozenset(
        node.name
        for node in net.nodes
        if any(segment.space in spaces for segment in node.layout)
        and (
            node.kind == "norm"
            or (node.kind in ("conv", "linear") and set(users[node.name]) != {"norm"})
            or (node.kind == "map" and node.attributes["operation"] not in SILENT)
        )
    )
