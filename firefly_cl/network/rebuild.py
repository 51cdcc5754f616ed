"""The one rebuilding step that edits share, and what it tells: which parameters went where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from firefly_cl.network.layers import Block, GrowableLayer, GrowableNorm, NormBlock, Statistics
from firefly_cl.network.net import FireflyNet
from firefly_cl.network.space import Layout, channel_sources


@dataclass(frozen=True)
class Moved:
    """One parameter that an edit replaced.

    rows, columns: for each row and column of `new` its number in `old`, -1 for a fresh one;
    None where that dimension did not change. shares: by what each column was multiplied, 1
    unless its unit was divided; None where columns did not change.
    """

    name: str
    old: nn.Parameter
    new: nn.Parameter
    rows: Tensor | None = None
    columns: Tensor | None = None
    shares: Tensor | None = None

    def carry(self, state: Tensor) -> Tensor:
        """A tensor shaped like `old` (momentum, say) as one shaped like `new`; zero where fresh."""
        for dim, sources in ((0, self.rows), (1, self.columns)):
            if sources is not None:
                state = gather(state, dim, sources)
        return state


@dataclass
class Edit:
    """What an edit did: the parameters it replaced or added, and where the units of a space went.

    units: for each of the newest task's units after the edit its number before it, -1: fresh; a
    number that comes several times is a divided unit. widths: the task's units by space before
    the edit. shares: for each unit after the edit the share it has of what is read of its
    source (all ones unless units were divided). added: parameters of layers that were not there
    before. before: the task's parameter that precedes them in the order of the graph.
    """

    space: str
    units: Tensor
    widths: Mapping[str, int]
    shares: Tensor
    moved: list[Moved] = field(default_factory=list)
    added: list[nn.Parameter] = field(default_factory=list)
    before: nn.Parameter | None = None

    def carry_rows(self, layer: GrowableLayer, values: Tensor) -> Tensor:
        """Values by own row of a layer, made before the edit, as they stand after it."""
        if all(s.space != self.space for s in layer.writes):
            return values
        before, _ = channel_sources(layer.writes, self.space, self.units, self.widths)
        return gather(values, 0, before)

    def carry_columns(self, layer: GrowableLayer, values: Tensor) -> Tensor:
        """Values by own column of a layer; each copy of a divided unit gets its share of them."""
        if layer.per_unit or all(s.space != self.space for s in layer.reads):
            return values
        before, shares = self.column_sources(layer)
        return share_out(gather(values, 1, before), shares)

    def carry_incoming(self, layer: GrowableLayer, values: Tensor) -> Tensor:
        """Rows over older columns, then own ones, made before the edit, as they read after it."""
        if layer.per_unit:
            return values
        own = sum(self.widths[s.space] * s.repeat for s in layer.reads)
        old = values.shape[1] - own
        return torch.cat([values[:, :old], self.carry_columns(layer, values[:, old:])], 1)

    def column_sources(self, layer: GrowableLayer) -> tuple[Tensor, Tensor]:
        """For each own column of a layer after the edit its number before, and its share."""
        before, unit = channel_sources(layer.reads, self.space, self.units, self.widths)
        shares = torch.ones(len(unit), dtype=torch.float64)
        shares[unit >= 0] = self.shares[unit[unit >= 0]]
        return before, shares


def migrate(optimizer: torch.optim.Optimizer, edit: Edit) -> None:
    """Put an edit's new parameters into `optimizer`, with the state of every surviving unit.

    Those of new layers join the group of the parameter that precedes them, right behind it.
    """
    by_old = {id(moved.old): moved for moved in edit.moved}
    for group in optimizer.param_groups:
        at = [i for i, parameter in enumerate(group["params"]) if parameter is edit.before]
        if at:
            group["params"][at[0] + 1 : at[0] + 1] = edit.added
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


@dataclass
class Rows:
    """Rows of fresh units in one layer: weight over older columns, then own ones; bias."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass
class Fresh:
    """What an edit puts into fresh units, by node, in their order; zero where it says nothing."""

    rows: dict[str, Rows] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Statistics] = field(default_factory=dict)


def rebuild(
    net: FireflyNet, space: str, sources: Tensor, fresh: Fresh, shares: Tensor | None = None
) -> Edit:
    """Rearrange the newest task's own units of one space in every layer that knows it.

    sources: (k,) for each unit afterwards its number before, -1 for a fresh one. shares: (k,)
    by what its columns are multiplied, 1 unless given.
    """
    task = net.current
    widths = {name: s.width(task) for name, s in net.spaces.items()}
    if shares is None:
        shares = torch.ones(len(sources), dtype=torch.float64)
    edit = Edit(space, sources, widths, shares)

    def follow(layout: Layout) -> Tensor | None:
        if all(s.space != space for s in layout):
            return None
        return channel_sources(layout, space, sources, widths)[0]

    for name, layer in net.layers.items():
        if isinstance(layer, GrowableNorm):
            before, norm = follow(layer.writes), layer.block(task)
            if before is not None and norm is not None:
                _rebuild_norm(edit, name, norm, before, fresh.norms.get(name))
        elif isinstance(layer, GrowableLayer):
            block = layer.block(task)
            rows = follow(layer.writes)
            columns = None if layer.per_unit else follow(layer.reads)
            if block is not None and (rows is not None or columns is not None):
                divided = None if columns is None else edit.column_sources(layer)[1]
                _rebuild_block(edit, name, block, rows, columns, divided, fresh)
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
    shares: Tensor | None,
    fresh: Fresh,
) -> None:
    before = dict(block.named_parameters())
    values = {key: parameter.detach().clone() for key, parameter in before.items()}
    if rows is not None:
        values = {key: gather(value, 0, rows) for key, value in values.items()}
        at, given = (rows < 0).nonzero().flatten(), fresh.rows.get(name)
        if given is not None and len(at):
            old = values["from_old"].shape[1]
            values["from_old"][at] = given.weight[:, :old].to(values["from_old"])
            values["from_own"][at] = given.weight[:, old:].to(values["from_own"])
            if given.bias is not None and "bias" in values:
                values["bias"][at] = given.bias.to(values["bias"])
    if columns is not None:
        values["from_own"] = gather(values["from_own"], 1, columns)
        at, filling = (columns < 0).nonzero().flatten(), fresh.columns.get(name)
        if filling is not None and len(at):
            if rows is not None:
                filling = gather(filling, 0, rows)
            values["from_own"][:, at] = filling.to(values["from_own"])
    if shares is not None:
        values["from_own"] = share_out(values["from_own"], shares)
    for key, parameter in before.items():
        if rows is None and key != "from_own":
            continue
        new = nn.Parameter(values[key])
        setattr(block, key, new)
        by_column = (columns, shares) if key == "from_own" else (None, None)
        edit.moved.append(Moved(name, parameter, new, rows, *by_column))


def _rebuild_norm(
    edit: Edit,
    name: str,
    block: NormBlock,
    before: Tensor,
    given: Statistics | None,
) -> None:
    at = (before < 0).nonzero().flatten()
    n = len(at)
    like = block.running_mean
    values = given or Statistics(like.new_zeros(n), like.new_ones(n), None, None)
    block.running_mean = gather(block.running_mean, 0, before)
    block.running_var = gather(block.running_var, 0, before)
    if n:
        block.running_mean[at] = values.mean.to(like)
        block.running_var[at] = values.var.to(like)
    for key, parameter in list(block.named_parameters()):
        moved = gather(parameter.detach(), 0, before)
        if n:
            filling = values.weight if key == "weight" else values.bias
            default = 1.0 if key == "weight" else 0.0
            moved[at] = default if filling is None else filling.detach().to(moved)
        new = nn.Parameter(moved)
        setattr(block, key, new)
        edit.moved.append(Moved(f"{name}.{key}", parameter, new, before))


def share_out(values: Tensor, shares: Tensor) -> Tensor:
    """Columns multiplied by their shares; the same tensor where all of these are 1."""
    if bool((shares == 1).all()):
        return values
    return values * shares.to(values).view(1, -1, *[1] * (values.dim() - 2))


def gather(value: Tensor, dim: int, sources: Tensor) -> Tensor:
    """Rows or columns by number, zero where the number is -1."""
    sources = sources.to(value.device)
    if value.shape[dim] == 0:
        shape = list(value.shape)
        shape[dim] = len(sources)
        return value.new_zeros(shape)
    out = value.index_select(dim, sources.clamp(min=0))
    fresh = (sources < 0).nonzero().flatten()
    return out.index_fill(dim, fresh, 0) if len(fresh) else out
