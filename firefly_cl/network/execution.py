"""Running the graph for one task in two streams: old units without autograd, new ones with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from firefly_cl.errors import EditError
from firefly_cl.network.graph import STOCHASTIC_DEPTH, Node, apply_map, branch_scale
from firefly_cl.network.layers import GrowableLayer, GrowableNorm, Statistics

if TYPE_CHECKING:
    from firefly_cl.network.net import FireflyNet

Streams = dict[str, Tensor]
"""Parts of one tensor by name: "old" (units of earlier owners) and "new" (the task's own).

An absent stream has no channels, or holds nothing but zeros."""


@dataclass
class Plan:
    """What one task's pass needs of the frozen units, assembled once.

    weights and statistics: of the old rows, by node; gathers: where the columns that the task's
    own rows read stand in the old stream, by node, None when they are all of it.
    """

    weights: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    gathers: dict[str, Tensor | None] = field(default_factory=dict)
    _cast: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def weight(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a node's old rows; in autocast's format, cast once, inside of it."""
        weight, bias = self.weights[name]
        if not torch.is_autocast_enabled(weight.device.type):
            return weight, bias
        dtype = torch.get_autocast_dtype(weight.device.type)
        if name not in self._cast or self._cast[name][0].dtype != dtype:
            self._cast[name] = (weight.to(dtype), None if bias is None else bias.to(dtype))
        return self._cast[name]


class Execution:
    """One forward pass for one task.

    Subclasses add streams (candidates of growth) by overriding `layer`, `norm` and `head`;
    every other operation runs on whatever streams there are.
    """

    def __init__(self, net: FireflyNet, task: int) -> None:
        self.net = net
        self.task = task
        self.training = net.training and not net.tasks[task].frozen
        self.plan = net.plan(task)
        self.through_old = False

    def run(self, x: Tensor) -> Tensor:
        """Logits of the task, (B, classes), for a batch x of shape (B, C, H, W) or (B, F).

        Old units are computed without autograd unless `x` itself asks for a gradient.
        """
        self.through_old = torch.is_grad_enabled() and x.requires_grad
        values: dict[str, Streams] = {}
        for node in self.net.nodes:
            inputs = [values[name] for name in node.inputs]
            values[node.name] = {"old": x} if node.kind == "input" else self.step(node, inputs)
            for done in self.net.last_uses[node.name]:
                del values[done]
        return values[self.net.nodes[-1].name]["new"]

    def step(self, node: Node, inputs: Sequence[Streams]) -> Streams:
        """One node on every stream of its inputs."""
        if node.kind in ("conv", "linear"):
            return self.layer(node, inputs[0])
        if node.kind == "norm":
            return self.norm(node, inputs[0])
        if node.kind == "head":
            return self.head(node, inputs[0])
        if node.kind == "add":
            return self.each(inputs, _sum)
        if node.kind == "mul":  # where a factor is all zeros, so is the product
            both = inputs[0].keys() & inputs[1].keys()
            factors = [{name: x[name] for name in x if name in both} for x in inputs]
            return self.each(factors, lambda parts: parts[0] * parts[1])
        if node.kind == "cat":
            return self.each(inputs, _join)
        if node.kind == "flatten":
            return self.each(inputs, lambda parts: parts[0].flatten(1))
        if node.kind == "map":
            if self.training and node.attributes["operation"] == STOCHASTIC_DEPTH:
                return self.drop(node, inputs[0])
            return self.each(inputs, lambda parts: apply_map(node, parts[0], self.training))
        return inputs[0]

    def each(
        self, inputs: Sequence[Streams], operation: Callable[[list[Tensor]], Tensor]
    ) -> Streams:
        """An operation that never mixes streams, on each of them."""
        out: Streams = {}
        for stream in dict.fromkeys(name for value in inputs for name in value):
            parts = [value[stream] for value in inputs if stream in value]
            with torch.set_grad_enabled(self.carries_gradient(stream)):
                out[stream] = operation(parts)
        return out

    def carries_gradient(self, stream: str) -> bool:
        """Whether autograd follows a stream."""
        return torch.is_grad_enabled() and (stream != "old" or self.through_old)

    def drop(self, node: Node, value: Streams) -> Streams:
        """Stochastic depth in training: of a branch, either all streams are dropped or none."""
        p, mode = node.attributes["p"], node.attributes["mode"]
        scale = branch_scale(next(iter(value.values())), p, mode)
        return self.each([value], lambda parts: parts[0] * scale.to(parts[0].dtype))

    def growable(self, node: Node) -> GrowableLayer:
        """The layer of a conv, linear or head node."""
        layer = self.net.layers[node.name]
        assert isinstance(layer, GrowableLayer)
        return layer

    def layer(self, node: Node, value: Streams) -> Streams:
        """A convolution or linear layer: old rows by their assembled weight, then own rows."""
        layer, out = self.growable(node), Streams()
        old = value.get("old")
        if old is not None and node.name in self.plan.weights:
            with torch.set_grad_enabled(self.carries_gradient("old")):
                out["old"] = layer.apply_frozen(old, *self.plan.weight(node.name))
        new = layer.new_rows(self.task, self.read(node, old), value.get("new"))
        if new is not None:
            out["new"] = new
        return out

    def read(self, node: Node, old: Tensor | None) -> Tensor | None:
        """The channels of the old stream that the task's own rows of a layer read."""
        gather = self.plan.gathers.get(node.name)
        return old if old is None or gather is None else old.index_select(1, gather)

    def norm(self, node: Node, value: Streams) -> Streams:
        """A batch norm: frozen statistics for old channels, the task's own for the new ones."""
        norm, out = self.net.layers[node.name], Streams()
        assert isinstance(norm, GrowableNorm)
        if "old" in value:
            with torch.set_grad_enabled(self.carries_gradient("old")):
                out["old"] = norm.evaluate(value["old"], self.plan.statistics[node.name])
        if "new" in value:
            out["new"] = norm.new_channels(self.task, value["new"], self.training)
        return out

    def head(self, node: Node, value: Streams) -> Streams:
        """The task's head over everything it reads."""
        logits = self.growable(node).new_rows(
            self.task, self.read(node, value.get("old")), value.get("new")
        )
        if logits is None:
            raise EditError(f"task {self.task} has a head that reads no unit: give it some")
        return {"new": logits}


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _join(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, 1)
