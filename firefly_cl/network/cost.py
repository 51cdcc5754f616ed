"""What a network costs: numbers stored, bytes, floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from firefly_cl.network.graph import Node
from firefly_cl.network.layers import GrowableLayer, GrowableNorm
from firefly_cl.network.net import FireflyNet
from firefly_cl.network.space import Selection, channel_count


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
    """
    task = net.check_task(task)
    return sum(_old_flops(net, *pair, task) + _own_flops(net, *pair, task) for pair in _pairs(net))


def own_flops(net: FireflyNet, task: int | None = None) -> int:
    """The part of `flops` that the rows of the task itself take, its head's among them."""
    task = net.check_task(task)
    return sum(_own_flops(net, *pair, task) for pair in _pairs(net))


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
