"""Edits: the only ways to change a network's structure. Each returns what moved where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from firefly_cl.errors import EditError, SpaceFixed
from firefly_cl.network.graph import MAPS, Node
from firefly_cl.network.layers import Block, GrowableLayer, GrowableNorm, NormBlock, Statistics
from firefly_cl.network.net import FireflyNet
from firefly_cl.network.space import (
    Layout,
    Segment,
    Selection,
    Space,
    channel_count,
    channel_sources,
    expand,
    positions,
)

Values = Mapping[str, Tensor]
"""Tensors by node name."""


@dataclass(frozen=True)
class Moved:
    """One parameter that an edit replaced.

    rows, columns: for each row and column of `new` its number in `old`, -1 for a fresh one;
    None where that dimension did not change.
    """

    name: str
    old: nn.Parameter
    new: nn.Parameter
    rows: Tensor | None = None
    columns: Tensor | None = None

    def carry(self, state: Tensor) -> Tensor:
        """A tensor shaped like `old` (momentum, say) as one shaped like `new`; zero where fresh."""
        for dim, sources in ((0, self.rows), (1, self.columns)):
            if sources is not None:
                state = _gather(state, dim, sources)
        return state


@dataclass
class Edit:
    """What an edit did: the parameters it replaced, and where the units of a space went.

    units: for each of the newest task's units after the edit its number before it, -1: fresh; a
    number that comes twice is a split unit. widths: the task's units by space before the edit.
    """

    space: str
    units: Tensor
    widths: Mapping[str, int]
    moved: list[Moved] = field(default_factory=list)

    def carry_rows(self, layer: GrowableLayer, values: Tensor) -> Tensor:
        """Values by own row of a layer, made before the edit, as they stand after it."""
        if all(s.space != self.space for s in layer.writes):
            return values
        before, _ = channel_sources(layer.writes, self.space, self.units, self.widths)
        return _gather(values, 0, before)

    def carry_columns(self, layer: GrowableLayer, values: Tensor) -> Tensor:
        """Values by own column of a layer; a split unit's go half to each of the two."""
        if layer.per_unit or all(s.space != self.space for s in layer.reads):
            return values
        before, unit = channel_sources(layer.reads, self.space, self.units, self.widths)
        carried = _gather(values, 1, before)
        sources = self.units.clamp(min=0)
        counts = torch.bincount(sources, (self.units >= 0).to(torch.float64))
        twice = (self.units >= 0) & (counts[sources] > 1)
        halved = ((unit >= 0) & twice[unit.clamp(min=0)]).nonzero().flatten()
        carried[:, halved] *= 0.5
        return carried


def migrate(optimizer: torch.optim.Optimizer, edit: Edit) -> None:
    """Put an edit's new parameters into `optimizer`, with the state of every surviving unit."""
    by_old = {id(moved.old): moved for moved in edit.moved}
    for group in optimizer.param_groups:
        for i, parameter in enumerate(group["params"]):
            moved = by_old.get(id(parameter))
            if moved is None:
                continue
            group["params"][i] = moved.new
            state = optimizer.state.pop(parameter, None)
            if state is not None:
                optimizer.state[moved.new] = {
                    key: moved.carry(value)
                    if isinstance(value, Tensor) and value.shape == parameter.shape
                    else value
                    for key, value in state.items()
                }


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
    fresh = _Fresh(rows, dict(outgoing or {}), dict(norms or {}))
    return _rebuild(net, space, _appended(net, space, count), fresh)


def split(net: FireflyNet, space: str, units: Tensor, offsets: Values | None = None) -> Edit:
    """Split own units of the newest task in two, which share their outgoing weights.

    units: (k,) numbers among the task's own units of the space. offsets: for each producer
    (k x channels per unit, columns, ...), older columns first: added to the unit's rows and
    subtracted from its copy's. Without them no function changes. Wu et al. 2020, splits; Liu et
    al. 2019, arXiv 1910.02366. Raises EditError, SpaceFixed.
    """
    _check_open(net, space)
    width = net.spaces[space].width(net.current)
    units = units.to(torch.int64).cpu()
    if not len(units) or not _distinct(units) or units.min() < 0 or units.max() >= width:
        raise EditError(f"cannot split units {units.tolist()} of {space}: it has 0 to {width - 1}")
    sources = torch.cat([torch.arange(width), units])
    copies = torch.arange(width, width + len(units))
    for name, offset in (offsets or {}).items():
        _check_offset(net, name, space, offset, len(units))
    edit = _rebuild(net, space, sources, _Fresh())
    with torch.no_grad():
        for node in net.consumers(space):
            block = own_block(net, node.name)
            at = own_channels(net, _layer(net, node.name).reads, space, torch.cat([units, copies]))
            block.from_own[:, at] *= 0.5
        for name, offset in (offsets or {}).items():
            block, old = own_block(net, name), own_block(net, name).from_old.shape[1]
            offset = offset.to(block.from_own)
            own = edit.carry_columns(_layer(net, name), offset[:, old:])
            for sign, moved in ((1.0, units), (-1.0, copies)):
                at = own_channels(net, _layer(net, name).writes, space, moved)
                block.from_old[at] += sign * offset[:, :old]
                block.from_own[at] += sign * own
    return edit


def unlock(net: FireflyNet, space: str, units: Tensor, offsets: Values | None = None) -> Edit:
    """Copy frozen older units into the newest task, where they may train.

    The copies take over what the task's own rows and its head gave the originals; the
    originals stay as they are for every earlier task. units: (k,) numbers of older units that
    the task reads; the copies stand in ascending order of these, however they are given.
    offsets: as in `split`, added to the copies' rows. Batch-norm statistics of a copy stay those
    of its original. Raises EditError, also where the task does not read everything that an
    original reads; SpaceFixed.
    """
    _check_open(net, space)
    units = units.to(torch.int64).cpu()
    task = net.tasks[-1]
    if not len(units) or not _distinct(units) or not torch.isin(units, task.reads[space]).all():
        raise EditError(f"cannot unlock units {units.tolist()} of {space}: the task must read them")
    for name, offset in (offsets or {}).items():
        _check_offset(net, name, space, offset, len(units))
    units, order = units.sort()
    rows = {node.name: copied_rows(net, node.name, space, units) for node in net.producers(space)}
    for name, offset in (offsets or {}).items():
        weight = rows[name].weight
        at = expand(order, len(weight) // len(units))
        rows[name] = Rows(weight + offset.to(weight)[at.to(weight.device)], rows[name].bias)
    norms = {node.name: copied_norm(net, node.name, space, units) for node in net.norms(space)}
    columns = {}
    with torch.no_grad():
        for node in net.consumers(space):
            block = own_block(net, node.name)
            at = read_channels(net, _layer(net, node.name).reads, space, units)
            columns[node.name] = block.from_old[:, at].clone()
            block.from_old[:, at] = 0.0
    fresh = _Fresh(rows, columns, norms, fixed=True)
    return _rebuild(net, space, _appended(net, space, len(units)), fresh)


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
    return _rebuild(net, space, kept, _Fresh())


def insert(
    net: FireflyNet,
    after: str,
    width: int,
    kernel: int = 3,
    activation: str = "relu",
    norm: bool = True,
    generator: torch.Generator | None = None,
) -> str:
    """Insert an identity-residual layer z + h(z) after a node; returns its hidden space.

    h has `width` hidden units of the newest task (of `kernel` x `kernel` on maps, dense on flat
    features), which read everything that the task reads there and write only to the task's own
    channels, with zero weights at first, so that no function changes. Wu et al. 2020, deeper
    (method.md section 1). Raises EditError.
    """
    if net.tasks[-1].frozen:
        raise EditError(f"task {net.current} is frozen: begin a task before inserting a layer")
    try:
        base = net.node(after)
    except KeyError:
        raise EditError(f"there is no node {after!r} to insert a layer after") from None
    if not base.layout or base.kind == "input" or width < 1:
        raise EditError(f"cannot insert {width} units after {after} ({base.kind})")
    if any(net.spaces[s.space].fixed for s in base.layout):
        raise EditError(f"{after} holds the network's input: its channels belong to no task")
    task, own = net.current, net.owned_units(net.current)
    if not channel_count(base.layout, own):
        raise EditError(f"task {task} has no units at {after} to write to: widen it first")
    if kernel % 2 == 0 and not base.flat:
        raise EditError(f"a kernel of {kernel} would change the map's size at {after}: use 3 or 5")
    if activation not in MAPS:
        raise EditError(f"activation {activation!r} is unknown: teach it with register_map")
    kind = "linear" if base.flat else "conv"
    geometry: dict[str, object] = {"bias": not norm, "per_unit": False}
    if not base.flat:
        geometry |= {
            "kernel": [kernel, kernel],
            "stride": [1, 1],
            "padding": [kernel // 2, kernel // 2],
            "dilation": [1, 1],
        }
    n = sum(name.startswith(f"{after}_deeper") for name in net.spaces) + 1
    space = f"{after}_deeper{n}"
    hidden = (Segment(space),)
    nodes: list[Node] = []

    def append(name: str, kind: str, layout: Layout, attributes: dict[str, object]) -> None:
        reads = nodes[-1].name if nodes else after
        nodes.append(Node(name, kind, (reads,), layout, attributes, base.size, base.flat))

    append(space, kind, hidden, geometry)
    if norm:
        append(f"{space}_norm", "norm", hidden, {"eps": 1e-5, "momentum": 0.1, "affine": True})
    append(f"{space}_act", "map", hidden, {"operation": activation})
    append(f"{space}_out", kind, base.layout, {**geometry, "bias": False})
    append(f"{space}_add", "add", base.layout, {})
    total = nodes[-1] = nodes[-1].with_inputs((after, nodes[-2].name))

    like = next(net.parameters())
    at = net.nodes.index(base) + 1
    later = [
        node.with_inputs(tuple(total.name if i == after else i for i in node.inputs))
        for node in net.nodes[at:]
    ]
    net.nodes[at:] = [*nodes, *later]
    net.spaces[space] = Space(space, {task: width})
    for record in net.tasks:
        record.reads[space] = torch.zeros(0, dtype=torch.int64)
        record.active[space] = torch.zeros(0, dtype=torch.int64)
    net.refresh()
    generator = generator or torch.Generator().manual_seed(torch.initial_seed() % 2**31)
    for node in nodes:
        net.add_layer(node)
        layer = net.layers[node.name] if node.name in net.layers else None
        if isinstance(layer, GrowableNorm):
            layer.add_block(task, width, like)
        elif isinstance(layer, GrowableLayer):
            block = layer.add_block(task, *net.block_shape(layer, task), like, generator)
            if node.name.endswith("_out"):
                block.from_old.data.zero_()
                block.from_own.data.zero_()
    net.forget_plans()
    return space


# --- the one rebuilding step that edits share -----------------------------------------------


@dataclass
class Rows:
    """Rows of fresh units in one layer: weight over older columns, then own ones; bias."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass
class _Fresh:
    """What an edit puts into fresh units, by node, in their order; zero where it says nothing."""

    rows: dict[str, Rows] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Statistics] = field(default_factory=dict)
    fixed: bool = False


def _rebuild(net: FireflyNet, space: str, sources: Tensor, fresh: _Fresh) -> Edit:
    """Rearrange the newest task's own units of one space in every layer that knows it.

    sources: (k,) for each unit afterwards its number before, -1 for a fresh one.
    """
    task = net.current
    widths = {name: s.width(task) for name, s in net.spaces.items()}
    edit = Edit(space, sources, widths)

    def follow(layout: Layout) -> Tensor | None:
        if all(s.space != space for s in layout):
            return None
        return channel_sources(layout, space, sources, widths)[0]

    for name, layer in net.layers.items():
        if isinstance(layer, GrowableNorm):
            before, norm = follow(layer.writes), layer.block(task)
            if before is not None and norm is not None:
                _rebuild_norm(edit, name, norm, before, fresh.norms.get(name), fresh.fixed)
        elif isinstance(layer, GrowableLayer):
            block = layer.block(task)
            rows = follow(layer.writes)
            columns = None if layer.per_unit else follow(layer.reads)
            if block is not None and (rows is not None or columns is not None):
                _rebuild_block(edit, name, block, rows, columns, fresh)
    net.spaces[space].widths[task] = len(sources)
    for moved in edit.moved:
        moved.new.requires_grad_(moved.old.requires_grad)
    net.forget_plans()
    return edit


def _rebuild_block(
    edit: Edit,
    name: str,
    block: Block,
    rows: Tensor | None,
    columns: Tensor | None,
    fresh: _Fresh,
) -> None:
    before = dict(block.named_parameters())
    values = {key: parameter.detach().clone() for key, parameter in before.items()}
    if rows is not None:
        values = {key: _gather(value, 0, rows) for key, value in values.items()}
        at, given = (rows < 0).nonzero().flatten(), fresh.rows.get(name)
        if given is not None and len(at):
            old = values["from_old"].shape[1]
            values["from_old"][at] = given.weight[:, :old].to(values["from_old"])
            values["from_own"][at] = given.weight[:, old:].to(values["from_own"])
            if given.bias is not None and "bias" in values:
                values["bias"][at] = given.bias.to(values["bias"])
    if columns is not None:
        values["from_own"] = _gather(values["from_own"], 1, columns)
        at, filling = (columns < 0).nonzero().flatten(), fresh.columns.get(name)
        if filling is not None and len(at):
            if rows is not None:
                filling = _gather(filling, 0, rows)
            values["from_own"][:, at] = filling.to(values["from_own"])
    for key, parameter in before.items():
        if rows is None and key != "from_own":
            continue
        new = nn.Parameter(values[key])
        setattr(block, key, new)
        edit.moved.append(Moved(name, parameter, new, rows, columns if key == "from_own" else None))


def _rebuild_norm(
    edit: Edit,
    name: str,
    block: NormBlock,
    before: Tensor,
    given: Statistics | None,
    fixed: bool,
) -> None:
    at = (before < 0).nonzero().flatten()
    n = len(at)
    like = block.running_mean
    values = given or Statistics(like.new_zeros(n), like.new_ones(n), None, None)
    block.running_mean = _gather(block.running_mean, 0, before)
    block.running_var = _gather(block.running_var, 0, before)
    block.fixed = _gather(block.fixed, 0, before)
    if n:
        block.running_mean[at] = values.mean.to(like)
        block.running_var[at] = values.var.to(like)
        block.fixed[at] = fixed
    for key, parameter in list(block.named_parameters()):
        moved = _gather(parameter.detach(), 0, before)
        if n:
            filling = values.weight if key == "weight" else values.bias
            default = 1.0 if key == "weight" else 0.0
            moved[at] = default if filling is None else filling.detach().to(moved)
        new = nn.Parameter(moved)
        setattr(block, key, new)
        edit.moved.append(Moved(f"{name}.{key}", parameter, new, before))


def _gather(value: Tensor, dim: int, sources: Tensor) -> Tensor:
    """Rows or columns by number, zero where the number is -1."""
    sources = sources.to(value.device)
    if value.shape[dim] == 0:
        shape = list(value.shape)
        shape[dim] = len(sources)
        return value.new_zeros(shape)
    out = value.index_select(dim, sources.clamp(min=0))
    fresh = (sources < 0).nonzero().flatten()
    return out.index_fill(dim, fresh, 0) if len(fresh) else out


# --- what edits look up ---------------------------------------------------------------------


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
        left = [s for s in _layer(net, node.name).reads if s.space != space]
        own = channel_count(tuple(left), net.owned_units(net.current))
        if block.rows and not block.from_old.shape[1] and not own:
            raise EditError(f"{node.name} would read no unit: keep one of {space} at least")


def _distinct(units: Tensor) -> bool:
    return len(set(units.tolist())) == len(units)


def _appended(net: FireflyNet, space: str, count: int) -> Tensor:
    width = net.spaces[space].width(net.current)
    return torch.cat([torch.arange(width), torch.full((count,), -1)])


def _layer(net: FireflyNet, name: str) -> GrowableLayer:
    layer = net.layers[name] if name in net.layers else None
    if not isinstance(layer, GrowableLayer):
        raise EditError(f"{name!r} is not a layer of the network")
    return layer


def own_block(net: FireflyNet, name: str) -> Block:
    """The newest task's rows of a layer; raises EditError if it has none."""
    block = _layer(net, name).block(net.current)
    if block is None:
        raise EditError(f"task {net.current} has no rows in {name}")
    return block


def _only(net: FireflyNet, space: str, units: Tensor) -> Selection:
    """A selection of units of one space and none of the others."""
    none = torch.zeros(0, dtype=torch.int64)
    return {name: units if name == space else none for name in net.spaces}


def own_channels(net: FireflyNet, layout: Layout, space: str, units: Tensor) -> Tensor:
    """Channels of own units (numbered from 0) among a task's own channels."""
    owned = net.owned_units(net.current)
    return positions(layout, owned, _only(net, space, owned[space][units]))[0]


def read_channels(net: FireflyNet, layout: Layout, space: str, units: Tensor) -> Tensor:
    """Channels of older units among those that the newest task reads."""
    return positions(layout, net.tasks[-1].reads, _only(net, space, units))[0]


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
        fan_in = max(weight[0].numel(), 1)
        rows[node.name] = Rows((weight * (2.0 / fan_in) ** 0.5).to(block.from_own))
    return rows


def _check_offset(net: FireflyNet, name: str, space: str, offset: Tensor, units: int) -> None:
    layer, block = _layer(net, name), own_block(net, name)
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
    layer = _layer(net, name)
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


def copied_rows(net: FireflyNet, name: str, space: str, units: Tensor) -> Rows:
    """The rows of older units as rows of the newest task."""
    layer, own = _layer(net, name), own_block(net, name)
    shape = (own.from_old.shape[1] + own.from_own.shape[1], *own.from_own.shape[2:])
    repeat = sum(s.repeat for s in layer.writes if s.space == space)
    weight = own.from_own.new_zeros(len(units) * repeat, *shape)
    bias = weight.new_zeros(len(weight)) if own.bias is not None else None
    chosen = _only(net, space, units)
    for owner in range(net.current):
        block, owned = layer.block(owner), net.owned_units(owner)
        of_owner = _only(net, space, owned[space][torch.isin(owned[space], units)])
        if block is None or not len(of_owner[space]):
            continue
        there, _ = positions(layer.writes, owned, of_owner)
        here, _ = positions(layer.writes, chosen, of_owner)
        if layer.per_unit:
            weight[here] = block.from_own.detach()[there]
        else:
            columns, found = positions(layer.reads, net.tasks[-1].reads, net.read_units(owner))
            if not bool(found.all()):
                raise EditError(
                    f"cannot unlock units of task {owner} in {space}: the newest task does not "
                    f"read everything that their rows in {name} read"
                )
            whole = layer.whole_rows(owner, net.read_units, net.owned_units)[there]
            weight[here[:, None], columns] = whole
        if bias is not None and block.bias is not None:
            bias[here] = block.bias.detach()[there]
    return Rows(weight, bias)


def copied_norm(net: FireflyNet, name: str, space: str, units: Tensor) -> Statistics:
    """Statistics and affine parameters of older units."""
    norm = net.layers[name]
    assert isinstance(norm, GrowableNorm)
    return norm.assemble(range(net.current), _only(net, space, units), net.owned_units)
