"""The newest task's units in the layers: where they stand, and rows drawn or copied for them."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from firefly_cl.errors import EditError
from firefly_cl.network.layers import Block, GrowableLayer, GrowableNorm, Statistics
from firefly_cl.network.net import FireflyNet
from firefly_cl.network.rebuild import Rows
from firefly_cl.network.space import Layout, Selection, positions


def growable_layer(net: FireflyNet, name: str) -> GrowableLayer:
    """The layer of that name; raises EditError if there is none."""
    layer = net.layers[name] if name in net.layers else None
    if not isinstance(layer, GrowableLayer):
        raise EditError(f"{name!r} is not a layer of the network")
    return layer


def own_block(net: FireflyNet, name: str) -> Block:
    """The newest task's rows of a layer; raises EditError if it has none."""
    block = growable_layer(net, name).block(net.current)
    if block is None:
        raise EditError(f"task {net.current} has no rows in {name}")
    return block


def only(net: FireflyNet, space: str, units: Tensor) -> Selection:
    """A selection of units of one space and none of the others."""
    none = torch.zeros(0, dtype=torch.int64)
    return {name: units if name == space else none for name in net.spaces}


def own_channels(net: FireflyNet, layout: Layout, space: str, units: Tensor) -> Tensor:
    """Channels of own units (numbered from 0) among a task's own channels."""
    owned = net.owned_units(net.current)
    return positions(layout, owned, only(net, space, owned[space][units]))[0]


def read_channels(net: FireflyNet, layout: Layout, space: str, units: Tensor) -> Tensor:
    """Channels of older units among those that the newest task reads."""
    return positions(layout, net.tasks[-1].reads, only(net, space, units))[0]


def drawn_rows(
    net: FireflyNet, space: str, count: int, generator: torch.Generator | None
) -> dict[str, Rows]:
    """He-initialised rows for `count` new units, for every producer of a space."""
    rows = {}
    for node in net.producers(space):
        block = own_block(net, node.name)
        repeat = sum(s.repeat for s in node.layout if s.space == space)
        old = block.from_old.shape[1]
        shape = (count * repeat, old + block.from_own.shape[1], *block.from_own.shape[2:])
        weight = torch.randn(shape, generator=generator)
        fan_in = max(math.prod(shape[1:]), 1)
        rows[node.name] = Rows((weight * (2.0 / fan_in) ** 0.5).to(block.from_own))
    return rows


def bare_producer(net: FireflyNet, space: str) -> str | None:
    """A layer whose rows for new units of a space would read no unit; None if all read some."""
    for node in net.producers(space):
        layer, block = growable_layer(net, node.name), own_block(net, node.name)
        columns = block.from_old.shape[1] + block.from_own.shape[1]
        alone = layer.per_unit or layer.is_residual or any(s.space == space for s in layer.reads)
        if not columns and not alone:
            return node.name
    return None


def copied_rows(net: FireflyNet, name: str, space: str, units: Tensor) -> Rows:
    """The rows of older units as rows of the newest task."""
    layer, own = growable_layer(net, name), own_block(net, name)
    shape = (own.from_old.shape[1] + own.from_own.shape[1], *own.from_own.shape[2:])
    repeat = sum(s.repeat for s in layer.writes if s.space == space)
    weight = own.from_own.new_zeros(len(units) * repeat, *shape)
    bias = weight.new_zeros(len(weight)) if own.bias is not None else None
    chosen = only(net, space, units)
    reads, owns = cache(net.read_units), cache(net.owned_units)
    for owner in range(net.current):
        block, owned = layer.block(owner), owns(owner)
        of_owner = only(net, space, owned[space][torch.isin(owned[space], units)])
        if block is None or not len(of_owner[space]):
            continue
        there, _ = positions(layer.writes, owned, of_owner)
        here, _ = positions(layer.writes, chosen, of_owner)
        if layer.per_unit:
            weight[here] = block.from_own.detach()[there]
        else:
            columns, found = positions(layer.reads, net.tasks[-1].reads, reads(owner))
            if not bool(found.all()):
                raise EditError(
                    f"cannot unlock units of task {owner} in {space}: the newest task does not "
                    f"read everything that their rows in {name} read"
                )
            whole = layer.whole_rows(owner, reads, owns)[there]
            weight[here[:, None], columns] = whole
        if bias is not None and block.bias is not None:
            bias[here] = block.bias.detach()[there]
    return Rows(weight, bias)


def copied_norm(net: FireflyNet, name: str, space: str, units: Tensor) -> Statistics:
    """Statistics and affine parameters of older units."""
    norm = net.layers[name]
    assert isinstance(norm, GrowableNorm)
    return norm.assemble(range(net.current), only(net, space, units), net.owned_units)
