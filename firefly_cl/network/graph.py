"""The network's graph: plain nodes that can be written to JSON and gain nodes by growth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from firefly_cl.errors import UnsupportedOperation
from firefly_cl.network.space import Layout, Segment


@dataclass(frozen=True)
class Node:
    """One operation.

    kind: input, conv, linear, norm, map, add, mul, cat, flatten, identity, head or output.
    attributes: what the kind needs besides (JSON values only).
    layout: how the output's channels are made of units; empty for heads and what follows.
    size: spatial elements of the output for each channel (height x width; 1 when flat).
    flat: whether the output is (B, features) rather than a map.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    layout: Layout
    attributes: Mapping[str, Any] = field(default_factory=dict)
    size: int = 1
    flat: bool = False

    def with_inputs(self, inputs: tuple[str, ...]) -> Node:
        """The same node reading other nodes."""
        return replace(self, inputs=inputs)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "inputs": list(self.inputs),
            "layout": [[s.space, s.repeat] for s in self.layout],
            "attributes": dict(self.attributes),
            "size": self.size,
            "flat": self.flat,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Node:
        """The node that `to_json` wrote."""
        return Node(
            data["name"],
            data["kind"],
            tuple(data["inputs"]),
            tuple(Segment(space, repeat) for space, repeat in data["layout"]),
            data["attributes"],
            data["size"],
            data["flat"],
        )


Map = Callable[..., Tensor]

STOCHASTIC_DEPTH = "stochastic_depth"


def branch_scale(x: Tensor, p: float, mode: str) -> Tensor:
    """What a branch is multiplied by in training: 0 with probability p, else 1 / (1 - p).

    Stochastic depth (Huang et al. 2016, arXiv 1603.09382). mode: "row" draws for each image of
    x (B, C, ...), "batch" once for all. The result broadcasts to x.
    """
    drawn = x.new_empty([x.shape[0] if mode == "row" else 1] + [1] * (x.dim() - 1))
    drawn.bernoulli_(1 - p)
    return drawn / (1 - p) if p < 1 else drawn


def _stochastic_depth(x: Tensor, p: float, mode: str, training: bool = False) -> Tensor:
    return x * branch_scale(x, p, mode) if training else x


MAPS: dict[str, Map] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "square": torch.square,
    "pow": torch.pow,
    "neg": torch.neg,
    "abs": torch.abs,
    "mul": torch.mul,
    "add": torch.add,
    "max_pool2d": F.max_pool2d,
    "avg_pool2d": F.avg_pool2d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "adaptive_max_pool2d": F.adaptive_max_pool2d,
    "mean": torch.mean,
    "amax": torch.amax,
    "dropout": F.dropout,
    "dropout2d": F.dropout2d,
    STOCHASTIC_DEPTH: _stochastic_depth,
}
"""Operations that treat every channel alike and by itself, by name.

They need not be 0 at 0: a unit that is not there has no channel, so nothing of it is read.
"""

_DROPS = frozenset(("dropout", "dropout2d", STOCHASTIC_DEPTH))

POOLINGS = frozenset(name for name in MAPS if "pool" in name) | _DROPS | {"mean", "amax"}
"""Maps that are no activations: they choose among or average what they get."""


def register_map(name: str, function: Map) -> None:
    """Let the operation `name` act on every channel by itself.

    `function(x, **attributes)` takes (B, C, ...) and must not mix channels. Together with
    `firefly_cl.network.register_rule` this teaches the tracer a new activation or pooling.
    """
    if MAPS.setdefault(name, function) is not function:
        raise UnsupportedOperation(f"an operation named {name!r} is already there: choose another")


def apply_map(node: Node, x: Tensor, training: bool) -> Tensor:
    """Run a map node on one stream."""
    attributes = dict(node.attributes)
    name = attributes.pop("operation")
    if name in _DROPS:
        attributes["training"] = training
    for key, value in attributes.items():
        if isinstance(value, list):
            attributes[key] = tuple(value)
    return MAPS[name](x, **attributes)
