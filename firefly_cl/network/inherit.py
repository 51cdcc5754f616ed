"""Starting a task from what an older one has learnt: copies that train, frozen originals."""

from __future__ import annotations

import torch
from torch import Tensor

from firefly_cl.errors import EditError
from firefly_cl.network.layers import GrowableLayer, GrowableNorm
from firefly_cl.network.net import FireflyNet
from firefly_cl.network.rows import own_block
from firefly_cl.network.space import Selection, positions


@torch.no_grad()
def inherit(net: FireflyNet, units: Selection, source: int | None = None) -> None:
    """Let own units of the newest task start as copies of units that an older one owns.

    source: the owner, the task before unless told. units: numbers of the originals by space,
    ascending; the k-th own unit of a space becomes the copy of the k-th. Copies read the copies of
    what their originals read, or else the originals themselves as far as the task reads these, so
    that features do not change where everything is at hand; other own units of the task are not
    read by copies yet. Heads stay as they are.
    Raises EditError for units that the owner does not own, or more than the newest has.
    """
    task, before = net.current, net.current - 1 if source is None else source
    if net.tasks[task].frozen or not 0 <= before < task:
        raise EditError(f"task {task} cannot inherit: begin a task after a frozen one first")
    none = torch.zeros(0, dtype=torch.int64)
    originals = {name: units.get(name, none) for name in net.spaces}
    for name, numbers in originals.items():
        space = net.spaces[name]
        if not bool(torch.isin(numbers, space.owned(before)).all()):
            raise EditError(f"task {before} does not own all units {numbers.tolist()} of {name}")
        if len(numbers) > space.width(task):
            raise EditError(
                f"task {task} has {space.width(task)} units in {name} for {len(numbers)} copies"
            )
    copies = {
        name: net.spaces[name].owned(task)[: len(numbers)] for name, numbers in originals.items()
    }
    for name, layer in net.layers.items():
        if isinstance(layer, GrowableNorm):
            _inherit_norm(net, layer, before, originals, copies)
        elif isinstance(layer, GrowableLayer) and not layer.is_head:
            _inherit_rows(net, name, layer, before, originals, copies)
    net.forget_plans()


def _inherit_norm(
    net: FireflyNet, norm: GrowableNorm, before: int, originals: Selection, copies: Selection
) -> None:
    block, source = norm.block(net.current), norm.block(before)
    if block is None or source is None:
        return
    there = positions(norm.writes, net.owned_units(before), originals)[0]
    here = positions(norm.writes, net.owned_units(net.current), copies)[0]
    values, found = block.state_dict(), source.state_dict()
    for key, value in values.items():
        value[here.to(value.device)] = found[key][there.to(value.device)]


def _inherit_rows(
    net: FireflyNet,
    name: str,
    layer: GrowableLayer,
    before: int,
    originals: Selection,
    copies: Selection,
) -> None:
    task = net.current
    block, source = own_block(net, name), layer.block(before)
    device = block.from_own.device
    if source is None:  # a layer inserted since, which adds nothing to what the originals are
        here = positions(layer.writes, net.owned_units(task), copies)[0].to(device)
        block.from_old[here], block.from_own[here] = 0.0, 0.0
        return
    there = positions(layer.writes, net.owned_units(before), originals)[0].to(device)
    here = positions(layer.writes, net.owned_units(task), copies)[0].to(device)
    if block.bias is not None and source.bias is not None:
        block.bias[here] = source.bias[there]
    if layer.per_unit:
        block.from_own[here] = source.from_own[there]
        return
    rows = layer.whole_rows(before, net.read_units, net.owned_units)[there]
    reads = net.read_units(before)
    for weight, inside in (
        (block.from_old, net.tasks[task].reads),
        (block.from_own, net.owned_units(task)),
    ):
        read = {
            space: _found(reads[space], originals[space], copies[space], inside[space])
            for space in reads
        }
        columns = positions(layer.reads, reads, {s: pair[0] for s, pair in read.items()})[0]
        at = positions(layer.reads, inside, {s: pair[1] for s, pair in read.items()})[0]
        weight[here] = 0.0
        weight[here[:, None], at.to(device)] = rows[:, columns.to(device)]


def _found(
    read: Tensor, originals: Tensor, copies: Tensor, inside: Tensor
) -> tuple[Tensor, Tensor]:
    """Units that were `read`, and what stands for each of them now, where that is `inside`."""
    now = read.clone()
    copied = torch.isin(read, originals)
    now[copied] = copies[torch.searchsorted(originals, read[copied])]
    there = torch.isin(now, inside)
    return read[there], now[there]
