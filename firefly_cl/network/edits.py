"""Edits: the only ways to change a network's structure. Each returns what moved where."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from firefly_cl.errors import EditError, SpaceFixed
from firefly_cl.network.deeper import deeper_layer
from firefly_cl.network.layers import GrowableLayer, GrowableNorm, Statistics
from firefly_cl.network.net import FireflyNet
from firefly_cl.network.rebuild import Edit, Fresh, Moved, Rows, gather, rebuild
from firefly_cl.network.rows import (
    bare_producer,
    copied_norm,
    copied_rows,
    drawn_rows,
    growable_layer,
    own_block,
    own_channels,
    read_channels,
)
from firefly_cl.network.space import Space, channel_count, expand, positions, spaces_of

Values = Mapping[str, Tensor]
"""Tensors by node name."""


def widen(
    net: FireflyNet,
    space: str,
    count: int,
    incoming: Values | None = None,
    outgoing: Values | None = None,
    norms: Mapping[str, Statistics] | None = None,
    generator: torch.Generator | None = None,
) -> Edit:
    """Append `count` new units of the newest task to a space.

    incoming: for each producer its new rows, (count x channels per unit, columns, ...), over the
    older columns that the task reads, then its own; He-initialised unless given. outgoing: for
    each consumer its new columns, (rows, count x channels per unit, ...), zero unless given, so
    that no function changes. norms: for each norm the statistics of the new channels.
    Wu et al. 2020, arXiv 2102.08574, new neurons. Raises EditError, SpaceFixed.
    """
    _check_open(net, space)
    if count < 1:
        raise EditError(f"cannot add {count} units to {space}: give 1 or more")
    if bare := bare_producer(net, space):
        raise EditError(f"{bare} would read no unit: give the task one that it reads before")
    rows = drawn_rows(net, space, count, generator)
    for name, given in (incoming or {}).items():
        if name not in rows or rows[name].weight.shape != given.shape:
            raise EditError(f"incoming rows of {name} cannot have shape {tuple(given.shape)}")
        rows[name] = Rows(given, rows[name].bias)
    for name, given in (outgoing or {}).items():
        if tuple(given.shape) != _outgoing_shape(net, name, space, count):
            raise EditError(f"outgoing columns of {name} cannot have shape {tuple(given.shape)}")
    for name, statistics in (norms or {}).items():
        _check_statistics(net, name, space, statistics, count)
    fresh = Fresh(rows, dict(outgoing or {}), dict(norms or {}))
    return rebuild(net, space, _appended(net, space, count), fresh)


def split(net: FireflyNet, space: str, units: Tensor, offsets: Values | None = None) -> Edit:
    """Split own units of the newest task in two, which share their outgoing weights.

    units: (k,) numbers among the task's own units of the space. offsets: for each producer
    (k x channels per unit, columns, ...), older columns first: added to the unit's rows and
    subtracted from its copy's. Without them no function changes. Wu et al. 2020, splits; Liu et
    al. 2019, arXiv 1910.02366. Raises EditError, SpaceFixed.
    """
    _check_open(net, space)
    if not _distinct(units):
        raise EditError(f"cannot split units {units.tolist()} of {space}: name each once")
    for name, offset in (offsets or {}).items():
        _check_offset(net, name, space, offset, len(units))
    both = {name: torch.cat([offset, -offset]) for name, offset in (offsets or {}).items()}
    return divide(net, space, torch.cat([units, units]), torch.full((2 * len(units),), 0.5), both)


def divide(
    net: FireflyNet, space: str, units: Tensor, shares: Tensor, offsets: Values | None = None
) -> Edit:
    """Replace own units of the newest task by copies that share their outgoing weights.

    units: (k,) for each copy the number of its original among the task's own units of the space.
    shares: (k,) of the original's outgoing weights; may be negative, but those of one original
    sum to 1. offsets: for each producer (k x channels per unit, columns, ...), older columns
    first: added to the copies' rows. An original's first copy keeps its number, the others come
    after all units, in order. Without offsets no function changes. Wu et al. 2020, arXiv
    2003.10392, eq. for signed splitting. Raises EditError, SpaceFixed.
    """
    _check_open(net, space)
    width = net.spaces[space].width(net.current)
    units = units.to(torch.int64).cpu()
    if not len(units) or units.min() < 0 or units.max() >= width:
        raise EditError(f"cannot split units {units.tolist()} of {space}: it has 0 to {width - 1}")
    given = shares.to("cpu", torch.float64)
    if len(given) != len(units):
        raise EditError(f"{len(units)} copies in {space} need as many shares, not {len(given)}")
    sums = torch.zeros(width, dtype=torch.float64).index_add(0, units, given)
    if not bool((sums[units] - 1).abs().max() < 1e-6):
        raise EditError(f"shares of copies in {space} sum to {sums[units].tolist()}, not to 1")
    for name, offset in (offsets or {}).items():
        _check_offset(net, name, space, offset, len(units))
    places = {unit: i for i, unit in reversed(list(enumerate(units.tolist())))}
    first = torch.zeros(len(units), dtype=torch.bool)
    first[list(places.values())] = True
    sources = torch.cat([torch.arange(width), units[~first]])
    shared = torch.ones(len(sources), dtype=torch.float64)
    shared[units[first]], shared[width:] = given[first], given[~first]
    at = units.clone()
    at[~first] = torch.arange(width, len(sources))
    edit = rebuild(net, space, sources, Fresh(), shared)
    with torch.no_grad():
        for name, offset in (offsets or {}).items():
            layer, block = growable_layer(net, name), own_block(net, name)
            rows = own_channels(net, layer.writes, space, at)
            old = block.from_old.shape[1]
            moved = edit.carry_incoming(layer, offset.to(block.from_own))
            block.from_old[rows] += moved[:, :old]
            block.from_own[rows] += moved[:, old:]
    return edit


def replicate(net: FireflyNet, space: str, units: Tensor, offsets: Values | None = None) -> Edit:
    """Copy own units of the newest task; a unit and its copies share its outgoing weights equally.

    units: (k,) numbers among the task's own units of the space, a unit as often as it is to be
    copied. offsets: for each producer (k x channels per unit, columns, ...), older columns first:
    added to the copies' rows. Without them no function changes. Chen, Goodfellow, Shlens 2016,
    arXiv 1511.05641, Net2WiderNet. Raises EditError, SpaceFixed.
    """
    _check_open(net, space)
    width = net.spaces[space].width(net.current)
    units = units.to(torch.int64).cpu()
    if not len(units) or units.min() < 0 or units.max() >= width:
        raise EditError(f"cannot copy units {units.tolist()} of {space}: it has 0 to {width - 1}")
    for name, offset in (offsets or {}).items():
        _check_offset(net, name, space, offset, len(units))
    originals = torch.tensor(sorted(set(units.tolist())))
    numbers = torch.cat([originals, units])
    shares = torch.bincount(numbers).double().reciprocal()[numbers]
    whole = {}
    for name, offset in (offsets or {}).items():
        still = len(originals) * (len(offset) // len(units))
        whole[name] = torch.cat([offset.new_zeros(still, *offset.shape[1:]), offset])
    return divide(net, space, numbers, shares, whole)


def unlock(
    net: FireflyNet,
    space: str,
    units: Tensor,
    offsets: Values | None = None,
    norms: Mapping[str, Statistics] | None = None,
) -> Edit:
    """Copy frozen older units into the newest task, where they may train.

    The copies take over what the task's own rows and its head gave the originals; the
    originals stay as they are for every earlier task. units: (k,) numbers of older units that
    the task reads; the copies stand in ascending order of these, however they are given.
    offsets: as in `split`, added to the copies' rows. norms: for each norm the mean and variance
    that the units have in the newest task's data, in the order of `units`. Copies train with the
    statistics of their batches, so that these become theirs, and their affine map makes up for
    the difference: no function changes in evaluation, and little in training. Without them
    copies keep the statistics of their originals. Raises EditError, also where the task does not
    read everything that an original reads; SpaceFixed.
    """
    _check_open(net, space)
    units = units.to(torch.int64).cpu()
    task = net.tasks[-1]
    if not len(units) or not _distinct(units) or not torch.isin(units, task.reads[space]).all():
        raise EditError(f"cannot unlock units {units.tolist()} of {space}: the task must read them")
    for name, offset in (offsets or {}).items():
        _check_offset(net, name, space, offset, len(units))
    for name, statistics in (norms or {}).items():
        _check_statistics(net, name, space, statistics, len(units))
    units, order = units.sort()
    rows = {node.name: copied_rows(net, node.name, space, units) for node in net.producers(space)}
    for name, offset in (offsets or {}).items():
        weight = rows[name].weight
        at = expand(order, len(weight) // len(units))
        rows[name] = Rows(weight + offset.to(weight)[at.to(weight.device)], rows[name].bias)
    copied = {node.name: copied_norm(net, node.name, space, units) for node in net.norms(space)}
    for name, found in (norms or {}).items():
        norm = net.layers[name]
        assert isinstance(norm, GrowableNorm)
        at = expand(order, len(found.mean) // len(units)).to(found.mean.device)
        copied[name] = norm.restated(copied[name], found.mean[at], found.var[at])
    columns = {}
    with torch.no_grad():
        for node in net.consumers(space):
            block = own_block(net, node.name)
            at = read_channels(net, growable_layer(net, node.name).reads, space, units)
            columns[node.name] = block.from_old[:, at].clone()
            block.from_old[:, at] = 0.0
    fresh = Fresh(rows, columns, copied)
    return rebuild(net, space, _appended(net, space, len(units)), fresh)


def prune(net: FireflyNet, space: str, keep: Tensor) -> Edit:
    """Remove own units of the newest task. keep: (width,) bool, or numbers of those that stay.

    What the removed units contributed is gone. Raises EditError, SpaceFixed.
    """
    _check_open(net, space)
    width = net.spaces[space].width(net.current)
    kept = keep.nonzero().flatten() if keep.dtype == torch.bool else keep.sort().values
    kept = kept.cpu()
    if (keep.dtype == torch.bool and len(keep) != width) or not (
        _distinct(kept) and bool(((kept >= 0) & (kept < width)).all())
    ):
        raise EditError(f"cannot keep units {kept.tolist()} of {space}: it has 0 to {width - 1}")
    if not len(kept):
        _check_read(net, space)
    return rebuild(net, space, kept, Fresh())


def deselect(net: FireflyNet, space: str, units: Tensor) -> Edit:
    """Let the newest task no longer read some older units of a space.

    units: (k,) numbers of older units that it reads. Its rows and its head lose the columns, and
    what only these units needed upstream is not computed for it any more. method.md section 7,
    select. Raises EditError, also where a layer would be left with nothing to read; SpaceFixed.
    """
    _check_open(net, space)
    units = units.to(torch.int64).cpu()
    task = net.tasks[-1]
    if not len(units) or not _distinct(units) or not torch.isin(units, task.reads[space]).all():
        raise EditError(
            f"cannot deselect units {units.tolist()} of {space}: name older ones that the task "
            "reads, each once"
        )
    left = {**task.reads, space: task.reads[space][~torch.isin(task.reads[space], units)]}
    own = net.owned_units(net.current)
    for node in net.consumers(space):
        layer, block = growable_layer(net, node.name), own_block(net, node.name)
        if layer.is_residual or not block.rows:
            continue
        if not any(channel_count(layer.reads, units) for units in (left, own)):
            raise EditError(f"{node.name} would read no unit: keep one of {space} at least")
    width = net.spaces[space].width(net.current)
    widths = {name: s.width(net.current) for name, s in net.spaces.items()}
    edit = Edit(space, torch.arange(width), widths, torch.ones(width, dtype=torch.float64))
    for node in net.consumers(space):
        layer, block = growable_layer(net, node.name), own_block(net, node.name)
        columns = positions(layer.reads, task.reads, left)[0]
        before = block.from_old
        block.from_old = nn.Parameter(gather(before.detach(), 1, columns), before.requires_grad)
        edit.moved.append(Moved(node.name, before, block.from_old, None, columns))
    task.reads, task.active = left, net.close_upstream(left)
    net.forget_plans()
    return edit


def insert(
    net: FireflyNet,
    after: str,
    width: int,
    kernel: int | None = None,
    activation: str = "relu",
    norm: bool = True,
    incoming: Tensor | None = None,
    outgoing: Tensor | None = None,
    statistics: Statistics | None = None,
    generator: torch.Generator | None = None,
) -> Edit:
    """Insert an identity-residual layer z + h(z) after a node; the edit's space is its hidden one.

    h has `width` hidden units of the newest task (`kernel` x `kernel` on maps, as `deeper_layer`
    has it, dense on flat features), which read everything that the task reads there and write
    only to the task's own channels. incoming: (width, columns, ...), older columns first;
    He-initialised unless given. outgoing: (own channels of the node, width, ...), zero unless
    given, so that no function changes. statistics: of the hidden units, for their norm.
    Wu et al. 2020, arXiv 2102.08574, deeper (method.md section 3). Raises EditError.
    """
    made = deeper_layer(net, after, kernel, activation, norm)
    if width < 1:
        raise EditError(f"cannot insert {width} units after {after}: give 1 or more")
    task, like, space = net.current, next(net.parameters()), made.space
    own = channel_count(made.after.layout, net.owned_units(task))
    columns = channel_count(made.after.layout, net.tasks[task].reads) + own
    sides = made.enter.attributes.get("kernel", ())
    for name, given, expected in (
        ("incoming rows", incoming, (width, columns, *sides)),
        ("outgoing columns", outgoing, (own, width, *sides)),
        ("a mean", None if statistics is None else statistics.mean, (width,)),
        ("a variance", None if statistics is None else statistics.var, (width,)),
    ):
        if given is not None and tuple(given.shape) != expected:
            raise EditError(
                f"{name} of {width} units after {after} cannot have shape {tuple(given.shape)}: "
                f"give {expected}"
            )
    edit = Edit(
        space,
        torch.full((width,), -1),
        {name: s.width(task) for name, s in net.spaces.items()} | {space: 0},
        torch.ones(width, dtype=torch.float64),
    )
    at = net.nodes.index(made.after) + 1
    later = [
        node.with_inputs(tuple(made.total.name if i == after else i for i in node.inputs))
        for node in net.nodes[at:]
    ]
    net.nodes[at:] = [*made.nodes, *later]
    spaces = {**net.spaces, space: Space(space, {task: width})}
    net.spaces = {name: spaces[name] for name in spaces_of([node.layout for node in net.nodes])}
    net.refresh()
    for record in net.tasks:
        record.reads[space] = torch.zeros(0, dtype=torch.int64)
        record.active[space] = torch.zeros(0, dtype=torch.int64)
    generator = generator or torch.default_generator
    for node in made.nodes:
        net.add_layer(node)
        layer = net.layers[node.name] if node.name in net.layers else None
        if isinstance(layer, GrowableNorm):
            block = layer.add_block(task, width, like)
            if statistics is not None:
                block.running_mean.copy_(statistics.mean)
                block.running_var.copy_(statistics.var)
        elif isinstance(layer, GrowableLayer):
            rows = layer.add_block(task, *net.block_shape(layer, task), like, generator)
            given = outgoing if node is made.leave else incoming
            if given is not None:
                old = rows.from_old.shape[1]
                rows.from_old.data.copy_(given[:, :old])
                rows.from_own.data.copy_(given[:, old:])
            elif node is made.leave:
                rows.from_own.data.zero_()
    net.forget_plans()
    names = {node.name for node in made.nodes}
    for name, parameter in net.task_parameters(task):
        if name.split(".")[1] in names:
            edit.added.append(parameter)
        elif not edit.added:
            edit.before = parameter
    return edit


# --- what edits refuse -----------------------------------------------------------------------


def _check_open(net: FireflyNet, space: str) -> None:
    if space not in net.spaces:
        raise EditError(f"there is no space {space!r}: choose from {', '.join(net.spaces)}")
    if net.spaces[space].fixed:
        raise SpaceFixed(f"{space} is the network's input: its width is given")
    if not net.tasks or net.tasks[-1].frozen:
        raise EditError(f"task {net.current} is frozen: begin a task before editing {space}")


def _check_read(net: FireflyNet, space: str) -> None:
    """Raise EditError if a layer would read nothing once a space has no own units."""
    for node in net.consumers(space):
        block = own_block(net, node.name)
        if growable_layer(net, node.name).is_residual:
            continue
        left = [s for s in growable_layer(net, node.name).reads if s.space != space]
        own = channel_count(tuple(left), net.owned_units(net.current))
        if block.rows and not block.from_old.shape[1] and not own:
            raise EditError(f"{node.name} would read no unit: keep one of {space} at least")


def _distinct(units: Tensor) -> bool:
    return len(set(units.tolist())) == len(units)


def _appended(net: FireflyNet, space: str, count: int) -> Tensor:
    width = net.spaces[space].width(net.current)
    return torch.cat([torch.arange(width), torch.full((count,), -1)])


def _check_offset(net: FireflyNet, name: str, space: str, offset: Tensor, units: int) -> None:
    layer, block = growable_layer(net, name), own_block(net, name)
    rows = units * sum(s.repeat for s in layer.writes if s.space == space)
    if not rows:
        raise EditError(f"{name} has no rows in {space}: give offsets to its own layers only")
    columns = block.from_old.shape[1] + block.from_own.shape[1]
    expected = (rows, columns, *layer.kernel)
    if tuple(offset.shape) != expected:
        raise EditError(f"offsets of {name} have shape {tuple(offset.shape)}, not {expected}")


def _outgoing_shape(net: FireflyNet, name: str, space: str, units: int) -> tuple[int, ...]:
    """Shape of the columns of some new units in a layer that reads them."""
    if name not in {node.name for node in net.consumers(space)}:
        raise EditError(f"{name} does not read {space}: give outgoing columns to what does")
    layer = growable_layer(net, name)
    columns = units * sum(s.repeat for s in layer.reads if s.space == space)
    return (own_block(net, name).rows, columns, *layer.kernel)


def _check_statistics(
    net: FireflyNet, name: str, space: str, statistics: Statistics, units: int
) -> None:
    nodes = {node.name: node for node in net.norms(space)}
    if name not in nodes:
        raise EditError(f"{name} is no batch norm over {space}")
    channels = units * sum(s.repeat for s in nodes[name].layout if s.space == space)
    for value in (statistics.mean, statistics.var, statistics.weight, statistics.bias):
        if value is not None and tuple(value.shape) != (channels,):
            raise EditError(f"statistics of {name} have shape {tuple(value.shape)}: ({channels},)")
