"""What a network costs: numbers stored, bytes, floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from firefly_cl.network.graph import Node
from firefly_cl.network.layers import GrowableLayer, GrowableNorm
from firefly_cl.network.net import FireflyNet
from firefly_cl.network.space import Layout, Selection, channel_count


def floats(net: FireflyNet) -> int:
    """Every number stored: weights, norms with their statistics, heads of all tasks."""
    tensors = list(net.parameters()) + [b for b in net.buffers() if b.is_floating_point()]
    return sum(t.numel() for t in tensors)


def task_floats(net: FireflyNet, classes: int, widths: Mapping[str, int], reads: Selection) -> int:
    """Numbers that a further task adds with these seed units by space, reading `reads`."""
    total = 0
    for layer in net.layers.values():
        assert isinstance(layer, (GrowableLayer, GrowableNorm))
        rows = sum(s.repeat * widths.get(s.space, 0) for s in layer.writes)
        if isinstance(layer, GrowableNorm):
            total += rows * (4 if layer.affine else 2)
            continue
        rows = classes if layer.is_head else rows
        columns = layer.columns_per_unit
        if not layer.per_unit:
            columns = sum(
                s.repeat * (len(reads[s.space]) + widths.get(s.space, 0)) for s in layer.reads
            )
        total += rows * (columns * math.prod(layer.kernel) + layer.has_bias)
    return total


def mask_bits(net: FireflyNet) -> int:
    """One bit for each task and older unit: whether the task computes it."""
    return sum(
        net.spaces[name].before(task)
        for task in range(len(net.tasks))
        for name in net.growable_spaces()
    )


def stored_bytes(net: FireflyNet) -> int:
    """Bytes of all numbers and masks."""
    numbers = list(net.parameters()) + list(net.buffers())
    return sum(t.numel() * t.element_size() for t in numbers) + (mask_bits(net) + 7) // 8


def flops(net: FireflyNet, task: int | None = None) -> int:
    """Floating-point operations of one image through a task's function (a multiply-add is two).

    Convolutions and linear layers, as torch.utils.flop_counter counts them on `net(x, task)`:
    frozen units run as one dense product, with zeros where an older unit would read a newer one.
    Older tasks whose features a lateral head reads are counted whole, each by itself.
    """
    task = net.check_task(task)
    return _task_flops(net, task) + lateral_flops(net, task)


def lateral_flops(net: FireflyNet, task: int) -> int:
    """The part of `flops` that a task's lateral head takes, with the features that it reads."""
    lateral = net.lateral(task)
    if lateral is None:
        return 0
    total = sum(_task_flops(net, source) for source in lateral.sources)
    for weight in lateral.weights.values():
        total += 2 * weight.numel()
    return total


def _task_flops(net: FireflyNet, task: int) -> int:
    return sum(_old_flops(net, *pair, task) + _own_flops(net, *pair, task) for pair in _pairs(net))


def own_flops(net: FireflyNet, task: int | None = None) -> int:
    """The part of `flops` that the rows of the task itself take, its head's among them."""
    task = net.check_task(task)
    return sum(_own_flops(net, *pair, task) for pair in _pairs(net))


def read_cost(net: FireflyNet, space: str, cost: str) -> Tensor:
    """What the newest task pays to read each older unit of a space, (units read,) float64.

    cost: units (1 each), parameters (its columns in the task's own rows and head), or flops (the
    operations of these columns and of the unit's own frozen rows). What the unit needs upstream
    is not counted: other units may need it too.
    """
    reads, current = net.tasks[-1].reads[space], net.current
    total = torch.zeros(len(reads), dtype=torch.float64)
    if cost == "units":
        return total + 1
    for node, layer in _pairs(net):
        per_pair = _per_pair(node, layer) if cost == "flops" else math.prod(layer.kernel)
        if not layer.per_unit:
            block, repeat = layer.block(current), _repeat(layer.reads, space)
            total += (block.rows if block else 0) * repeat * per_pair
        if cost == "flops":
            for owner in net.spaces[space].owners(current):
                columns = layer.columns_per_unit
                if not layer.per_unit:
                    columns = channel_count(layer.reads, net.read_units(owner))
                own = torch.isin(reads, net.spaces[space].owned(owner))
                total[own] += _repeat(layer.writes, space) * columns * per_pair
    return total


def _repeat(layout: Layout, space: str) -> int:
    """Channels of a tensor that hold one unit of a space."""
    return sum(s.repeat for s in layout if s.space == space)


def _pairs(net: FireflyNet) -> Iterator[tuple[Node, GrowableLayer]]:
    for node in net.nodes:
        layer = net.layers[node.name] if node.name in net.layers else None
        if isinstance(layer, GrowableLayer):
            yield node, layer


def _per_pair(node: Node, layer: GrowableLayer) -> int:
    """Operations for one pair of output and input channels."""
    return 2 * node.size * math.prod(layer.kernel)


def _old_flops(net: FireflyNet, node: Node, layer: GrowableLayer, task: int) -> int:
    if layer.is_head:
        return 0
    active = net.tasks[task].active
    per_unit = layer.per_unit
    columns = layer.columns_per_unit if per_unit else channel_count(layer.reads, active)
    return channel_count(layer.writes, active) * columns * _per_pair(node, layer)


def _own_flops(net: FireflyNet, node: Node, layer: GrowableLayer, task: int) -> int:
    block = layer.block(task)
    if block is None:
        return 0
    if layer.per_unit:
        columns = layer.columns_per_unit
    else:
        read = (net.tasks[task].reads, net.owned_units(task))
        columns = sum(channel_count(layer.reads, units) for units in read)
    return block.rows * columns * _per_pair(node, layer)
