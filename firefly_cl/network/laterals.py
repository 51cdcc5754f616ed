"""Lateral heads: what a task's logits draw from the frozen features of older tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from firefly_cl.errors import EditError
from firefly_cl.network.execution import Execution, Streams
from firefly_cl.network.graph import POOLINGS, Node
from firefly_cl.network.space import channel_count

if TYPE_CHECKING:
    from firefly_cl.network.net import FireflyNet


class LateralHead(nn.Module):
    """Logits that one task adds to its own: a linear map of `features` of older tasks.

    Lateral connections (Rusu et al. 2016, arXiv 1606.04671) into the head alone, so that neither
    the task's own units nor the older ones compute anything else than without. weights: by older
    task, (classes, its features) each; bias: (classes,). Nothing here is trained by an optimizer.
    """

    def __init__(self, weights: Mapping[int, Tensor], bias: Tensor) -> None:
        super().__init__()
        frozen = {str(task): nn.Parameter(weight, False) for task, weight in weights.items()}
        self.weights = nn.ParameterDict(frozen)
        self.bias = nn.Parameter(bias, False)

    @property
    def sources(self) -> list[int]:
        """The older tasks whose features are read."""
        return [int(task) for task in self.weights]

    def logits(self, net: FireflyNet, x: Tensor) -> Tensor:
        """(B, classes), for a batch of inputs as `net` gets them."""
        total = self.bias
        for source in self.sources:
            total = total + features(net, source, x) @ self.weights[str(source)].T
        return total


def add_lateral_head(net: FireflyNet, weights: Mapping[int, Tensor], bias: Tensor) -> None:
    """Let the newest task's logits read features of older tasks as well.

    weights, bias: as in LateralHead. Zeros leave its function as it is. Raises EditError where
    the newest task is frozen, a source is not an older task, or shapes do not fit.
    """
    task, classes = net.current, net.tasks[-1].classes
    if net.tasks[-1].frozen:
        raise EditError(f"task {task} is frozen: add a lateral head before that")
    if tuple(bias.shape) != (classes,):
        raise EditError(f"the bias is {tuple(bias.shape)} for {classes} classes")
    for source, weight in weights.items():
        if not 0 <= source < task:
            raise EditError(f"task {task} cannot read features of task {source}: choose an older")
        if tuple(weight.shape) != (shape := (classes, feature_count(net, source))):
            raise EditError(
                f"weights over task {source} are {tuple(weight.shape)}, not {shape}: a row for "
                "each class, a column for each feature"
            )
    net.laterals[str(task)] = LateralHead(weights, bias)


@contextmanager
def lateral_factor(net: FireflyNet, factor: float) -> Iterator[None]:
    """Inside, what lateral heads add counts `factor` times; at 0 they are not computed."""
    before, net.lateral_factor = net.lateral_factor, factor
    try:
        yield
    finally:
        net.lateral_factor = before


def tapped(net: FireflyNet) -> list[Node]:
    """The nodes that features are read from: of each space the last that computes, in order.

    Nodes that only pool, flatten or join what others compute are none. Nor are the sums of inserted
    layers: what was fitted before a layer came must find its features where they were.
    """
    last: dict[str, Node] = {}
    for node in net.nodes:
        passing = node.attributes.get("operation") in POOLINGS or node.attributes.get("residual")
        if not passing and node.kind not in ("input", "flatten", "cat", "identity"):
            last.update(dict.fromkeys((segment.space for segment in node.layout), node))
    names = {node.name for node in last.values()}
    return [node for node in net.nodes if node.name in names]


def feature_count(net: FireflyNet, task: int) -> int:
    """How many `features` a task has: two for each own unit, one where it is no map."""
    owned = net.owned_units(task)
    return sum(channel_count(node.layout, owned) * per_channel(node) for node in tapped(net))


def per_channel(node: Node) -> int:
    """Features of one channel of a tapped node: mean and maximum, or the value of one point."""
    return 1 if node.size == 1 else 2


def features(net: FireflyNet, task: int, x: Tensor) -> Tensor:
    """Mean and maximum of each own unit of a task over the positions of its map, (B, features).

    x: a batch of inputs as `net` gets them. Where a map is one point, its value stands once. A
    gradient reaches `x` where it asks for one, as in any pass.
    """
    execution = _Tapping(net, task)
    execution.run(x)
    owned, parts = net.owned_units(task), []
    for node in tapped(net):
        if node.name in execution.maps:
            parts.append(pooled(execution.maps[node.name]))
        elif channels := channel_count(node.layout, owned):  # an absent stream is all zeros
            parts.append(x.new_zeros(len(x), channels * per_channel(node)))
    return torch.cat(parts, 1)


def pooled(maps: Tensor) -> Tensor:
    """(B, C, H, W) as means and maxima (B, 2C); one point of each channel as it is (B, C)."""
    flat = maps.flatten(2) if maps.dim() > 2 else maps[:, :, None]
    if flat.shape[2] == 1:
        return flat[:, :, 0]
    return torch.cat([flat.mean(2), flat.amax(2)], 1)


class _Tapping(Execution):
    """One task's function, keeping the own channels of the maps that are tapped."""

    def __init__(self, net: FireflyNet, task: int) -> None:
        super().__init__(net, task)
        self.names = {node.name for node in tapped(net)}
        self.maps: dict[str, Tensor] = {}

    def step(self, node: Node, inputs: Sequence[Streams]) -> Streams:
        out = super().step(node, inputs)
        if node.name in self.names and "new" in out:
            self.maps[node.name] = out["new"]
        return out
