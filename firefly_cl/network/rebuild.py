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
                state = gather(state, dim, sources)
        return state


@dataclass
class Edit:
    """What an edit did: the parameters it replaced, and where the units of a space went.

    units: for each of the newest task's units after the edit its number before it, -1: fresh; a
    number that comes several times is a split or copied unit. widths: the task's units by space
    before the edit.
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
        return gather(values, 0, before)

    def carry_columns(self, layer: GrowableLayer, values: Tensor) -> Tensor:
        """Values by own column of a layer; a split unit's are shared equally."""
        if layer.per_unit or all(s.space != self.space for s in layer.reads):
            return values
        before, unit = channel_sources(layer.reads, self.space, self.units, self.widths)
        carried = gather(values, 1, before)
        sources = self.units.clamp(min=0)
        counts = torch.bincount(sources, (self.units >= 0).to(torch.float64))
        shares = torch.where(self.units >= 0, 1.0 / counts[sources], 1.0)
        by_channel = torch.where(unit >= 0, shares[unit.clamp(min=0)], 1.0).to(carried)
        carried *= by_channel.view(-1, *[1] * (carried.dim() - 2))
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


def rebuild(net: FireflyNet, space: str, sources: Tensor, fresh: Fresh) -> Edit:
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
                _rebuild_norm(edit, name, norm, before, fresh.norms.get(name))
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
