"""The growing network: one graph, spaces of owned units, one function for each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from firefly_cl.errors import ConfigurationError, EditError
from firefly_cl.network.conversion import check_same, copy_weights
from firefly_cl.network.execution import Execution, Plan
from firefly_cl.network.graph import Node
from firefly_cl.network.laterals import LateralHead, tapped
from firefly_cl.network.layers import GrowableLayer, GrowableNorm
from firefly_cl.network.space import GIVEN, Selection, Space, channel_count, positions
from firefly_cl.network.trace import trace

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class Task:
    """What belongs to one task besides its units.

    reads: older units that its own rows and its head read. active: older units that must be
    computed for that (`reads`, closed upstream); the mask of the task. frozen: nothing of it
    changes any more.
    """

    classes: int
    reads: dict[str, Tensor]
    active: dict[str, Tensor]
    frozen: bool = False


class FireflyNet(nn.Module):
    """The union of all task networks; every unit has an owner, the task that created it.

    A row block of task t reads only units of tasks up to t, and nothing of an earlier task
    ever changes: each earlier function is preserved bit for bit, by shape (method.md section 7;
    Wu et al. 2020, arXiv 2102.08574).

    Build one with `from_module`, change it only through `firefly_cl.network.edits`.
    """

    def __init__(self, nodes: list[Node], spaces: dict[str, Space]) -> None:
        super().__init__()
        self.nodes = nodes
        self.spaces = spaces
        self.tasks: list[Task] = []
        self.layers = nn.ModuleDict()
        self.laterals = nn.ModuleDict()
        self.lateral_factor = 1.0
        self._plans: dict[int, Plan] = {}
        self._kept: set[int] = set()
        self.refresh()
        for node in nodes:
            self.add_layer(node)

    # --- construction -----------------------------------------------------------------------

    @staticmethod
    def from_module(model: nn.Module, example_input: Tensor, head: str | None = None) -> FireflyNet:
        """Convert a plain model; its function becomes that of task 0, its weights are copied.

        model: any torch.fx-traceable module of Conv2d (plain, depthwise, grouped), Linear,
        BatchNorm, activations, pooling, add, mul, cat, flatten. example_input: one batch,
        (B, C, H, W) or (B, F). head: name of the Linear that becomes one head per task (the
        last one called unless given). Raises UnsupportedOperation, naming the node and its
        source line, and ConfigurationError.
        """
        traced = trace(model, example_input, head)
        net = FireflyNet(traced.nodes, traced.spaces)
        given = {name: torch.arange(space.width(GIVEN)) for name, space in net.spaces.items()}
        active = {name: units.clone() for name, units in given.items()}
        net.tasks.append(Task(traced.classes, given, active))
        copy_weights(net, traced)
        net.train(model.training)
        check_same(model, net, example_input)
        return net

    def add_layer(self, node: Node) -> None:
        """Create the (empty) layer of a node that has one."""
        if node.kind in ("conv", "linear", "head"):
            self.layers[node.name] = GrowableLayer(node, self.node(node.inputs[0]).layout)
        elif node.kind == "norm":
            self.layers[node.name] = GrowableNorm(node)

    def refresh(self) -> None:
        """Bring derived look-ups up to date after the graph changed."""
        self._index = {node.name: node for node in self.nodes}
        last: dict[str, str] = {}
        for node in self.nodes:
            for name in node.inputs:
                last[name] = node.name
        self.last_uses: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for name, user in last.items():
            self.last_uses[user].append(name)

    # --- queries ------------------------------------------------------------------------------

    def node(self, name: str) -> Node:
        """The node of that name."""
        return self._index[name]

    @property
    def current(self) -> int:
        """The newest task."""
        return len(self.tasks) - 1

    def growable_spaces(self) -> list[str]:
        """Names of the spaces that can grow, in the order of the graph."""
        return [name for name, space in self.spaces.items() if not space.fixed]

    def owned_units(self, owner: int) -> Selection:
        """The units of `owner`, by space."""
        return {name: space.owned(owner) for name, space in self.spaces.items()}

    def read_units(self, owner: int) -> Selection:
        """The units that rows of `owner` read: the older ones it selected, and its own."""
        if owner == GIVEN:
            return self.owned_units(GIVEN)
        reads = self.tasks[owner].reads
        return {
            name: torch.cat([reads[name], space.owned(owner)])
            for name, space in self.spaces.items()
        }

    def active_units(self, task: int) -> Selection:
        """All the units that are computed for a task."""
        active = self.tasks[task].active
        return {
            name: torch.cat([active[name], space.owned(task)])
            for name, space in self.spaces.items()
        }

    def widths(self) -> dict[str, list[int]]:
        """Units of each growable space by owner task."""
        return {
            name: [self.spaces[name].width(t) for t in range(len(self.tasks))]
            for name in self.growable_spaces()
        }

    def reuse(self) -> list[list[int]]:
        """Units that each task reads of each owner, in all growable spaces: [task][owner]."""
        counts = [[0] * len(self.tasks) for _ in self.tasks]
        taps = {s.space for node in tapped(self) for s in node.layout}
        for name in self.growable_spaces():
            widths = [self.spaces[name].width(t) for t in range(len(self.tasks))]
            owners = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths))
            for number, task in enumerate(self.tasks):
                read = torch.zeros(len(owners), dtype=torch.bool)
                read[task.reads[name]] = True
                lateral = self.lateral(number)
                if lateral is not None and name in taps:
                    read |= torch.isin(owners, torch.tensor(lateral.sources))
                for owner in owners[read].tolist():
                    counts[number][owner] += 1
        return counts

    def units(self) -> int:
        """Units of all growable spaces and owners."""
        return sum(sum(widths) for widths in self.widths().values())

    def producers(self, space: str) -> list[Node]:
        """Layers with rows in a space (those that work unit by unit among them)."""
        return [
            n
            for n in self.nodes
            if n.kind in ("conv", "linear") and any(s.space == space for s in n.layout)
        ]

    def norms(self, space: str) -> list[Node]:
        """Batch norms over channels of a space."""
        return [
            n for n in self.nodes if n.kind == "norm" and any(s.space == space for s in n.layout)
        ]

    def consumers(self, space: str) -> list[Node]:
        """Layers and heads with a column for each unit of a space."""
        return [
            n
            for n in self.nodes
            if isinstance(
                layer := self.layers[n.name] if n.name in self.layers else None, GrowableLayer
            )
            and not layer.per_unit
            and any(s.space == space for s in layer.reads)
        ]

    def task_parameters(self, task: int) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that belong to a task, with their names, in the order of the graph.

        The order is the same after `insert` as in a network read from a file, so that the state
        of an optimizer fits both.
        """
        for node in self.nodes:
            layer = self.layers[node.name] if node.name in self.layers else None
            block = layer.block(task) if isinstance(layer, GrowableLayer | GrowableNorm) else None
            if block is not None:
                for key, parameter in block.named_parameters():
                    yield f"layers.{node.name}.blocks.{task}.{key}", parameter

    def trainable(self) -> list[nn.Parameter]:
        """Parameters of the newest task, none when it is frozen."""
        if not self.tasks or self.tasks[-1].frozen:
            return []
        return [parameter for _, parameter in self.task_parameters(self.current)]

    # --- running --------------------------------------------------------------------------------

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Logits of a task (the newest unless given), (B, classes of the task).

        x: (B, C, H, W) or (B, F), as the example input. Raises ConfigurationError for a task
        that the network has not seen.
        """
        task = self.check_task(task)
        lateral = self.lateral(task)
        self._kept = {task, *(lateral.sources if lateral is not None else ())}
        logits = Execution(self, task).run(x)
        if lateral is None or not self.lateral_factor:
            return logits
        return logits + self.lateral_factor * lateral.logits(self, x)

    def lateral(self, task: int) -> LateralHead | None:
        """What a task reads of older tasks' features, if it does."""
        name = str(task)
        return self.laterals[name] if name in self.laterals else None  # type: ignore[return-value]

    def check_task(self, task: int | None) -> int:
        """The task asked for; raises ConfigurationError if there is none such."""
        task = self.current if task is None else task
        if not 0 <= task < len(self.tasks):
            raise ConfigurationError(
                f"task {task} is unknown: the network has learnt tasks 0 to {self.current}"
            )
        return task

    def plan(self, task: int) -> Plan:
        """The frozen part of a task's pass, assembled once.

        Kept for the task asked last, and those whose features it reads.
        """
        if task not in self._plans:
            self._plans = {old: plan for old, plan in self._plans.items() if old in self._kept}
            self._plans[task] = self._make_plan(task)
        return self._plans[task]

    @torch.inference_mode(False)  # or gradients of later passes could not go through what is kept
    @torch.no_grad()
    def _make_plan(self, task: int) -> Plan:
        plan = Plan()
        active = self.tasks[task].active
        owned, reads = cache(self.owned_units), cache(self.read_units)
        for node in self.nodes:
            layer = self.layers[node.name] if node.name in self.layers else None
            if isinstance(layer, GrowableNorm):
                if channel_count(layer.writes, active):
                    owners = range(GIVEN, task)
                    plan.statistics[node.name] = layer.assemble(owners, active, owned)
            elif isinstance(layer, GrowableLayer):
                if channel_count(layer.writes, active) and not layer.is_head:
                    plan.weights[node.name] = layer.assemble(
                        range(task), active, active, reads, owned
                    )
                at, _ = positions(layer.reads, active, self.tasks[task].reads)
                whole = len(at) == channel_count(layer.reads, active)
                device = next(layer.parameters()).device
                plan.gathers[node.name] = None if whole else at.to(device)
        return plan

    def forget_plans(self) -> None:
        """Drop what was assembled from the frozen units; it is assembled again when needed."""
        self._plans.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._plans.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it so
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # what was assembled is of older weights; torch calls this too where a module wraps the net
        self._plans.clear()
        super()._load_from_state_dict(*args, **kwargs)

    # --- tasks ------------------------------------------------------------------------------------

    def block_shape(self, layer: GrowableLayer, task: int) -> tuple[int, int, int]:
        """(rows, columns of older units, columns of own units) of a task's block."""
        own = self.owned_units(task)
        rows = self.tasks[task].classes if layer.is_head else channel_count(layer.writes, own)
        return (
            rows,
            channel_count(layer.reads, self.tasks[task].reads),
            channel_count(layer.reads, own),
        )

    def begin_task(
        self,
        classes: int,
        widths: Mapping[str, int] | int,
        reads: Selection | None = None,
        generator: torch.Generator | None = None,
    ) -> int:
        """Add a task with `widths` seed units (one number, or one for each growable space).

        classes: outputs of its head. reads: older units that it may read, all unless given; what
        they need upstream is computed too. Returns the task's number. Raises EditError when
        the task before is not frozen, ConfigurationError for impossible numbers.
        """
        if self.tasks and not self.tasks[-1].frozen:
            raise EditError(f"task {self.current} is still open: freeze it before the next one")
        if classes < 1:
            raise ConfigurationError(f"a task needs classes, got {classes}")
        task = len(self.tasks)
        growable = self.growable_spaces()
        wanted = dict.fromkeys(growable, widths) if isinstance(widths, int) else dict(widths)
        unknown = set(wanted) - set(growable)
        strangers = set(reads or {}) - set(self.spaces)
        if strangers:
            raise ConfigurationError(
                f"there are no spaces {', '.join(sorted(strangers))} to read: choose among "
                f"{', '.join(self.spaces)}"
            )
        if unknown or any(width < 0 for width in wanted.values()):
            raise ConfigurationError(
                f"seed widths {wanted} must be 0 or more, for spaces among {', '.join(growable)}"
            )
        generator = generator or torch.default_generator
        chosen = {}
        for name, space in self.spaces.items():
            every = torch.arange(space.before(task))
            given = reads[name].sort().values if reads is not None and name in reads else every
            numbers = set(given.tolist())
            if len(numbers) < len(given) or not numbers <= set(range(len(every))):
                raise ConfigurationError(
                    f"cannot read units {given.tolist()} of {name}: give numbers from 0 to "
                    f"{len(every) - 1}, each once"
                )
            chosen[name] = every if space.fixed else given
        self._check_inputs({name: wanted.get(name, 0) for name in growable}, chosen)
        self.tasks.append(Task(classes, chosen, self.close_upstream(chosen)))
        for name in growable:
            self.spaces[name].widths[task] = wanted.get(name, 0)
        like = next(self.parameters())
        for layer in self.layers.values():
            if isinstance(layer, GrowableLayer):
                layer.add_block(task, *self.block_shape(layer, task), like, generator)
            elif isinstance(layer, GrowableNorm):
                channels = channel_count(layer.writes, self.owned_units(task))
                layer.add_block(task, channels, like)
        return task

    def _check_inputs(self, widths: Mapping[str, int], reads: Selection) -> None:
        """Raise EditError unless every layer with rows for a new task has something to read."""
        for name, layer in self.layers.items():
            if not isinstance(layer, GrowableLayer) or layer.per_unit or layer.is_residual:
                continue
            rows = layer.is_head or any(widths.get(s.space, 0) for s in layer.writes)
            if rows and not any(len(reads[s.space]) or widths.get(s.space, 0) for s in layer.reads):
                raise EditError(
                    f"{name} would read no unit for this task: give it seed units or older "
                    f"units in {', '.join(s.space for s in layer.reads)}"
                )

    def replace_head(self, classes: int, generator: torch.Generator | None = None) -> None:
        """Give the newest task a fresh head for another number of classes."""
        if self.tasks[-1].frozen:
            raise EditError(f"task {self.current} is frozen: its head cannot be replaced")
        if classes < 1:
            raise ConfigurationError(f"a task needs classes, got {classes}")
        task = self.tasks[-1]
        task.classes = classes
        if str(self.current) in self.laterals:
            del self.laterals[str(self.current)]
        generator = generator or torch.default_generator
        for node in self.nodes:
            layer = self.layers[node.name] if node.name in self.layers else None
            if isinstance(layer, GrowableLayer) and layer.is_head:
                shape = self.block_shape(layer, self.current)
                layer.add_block(self.current, *shape, next(layer.parameters()), generator)

    def close_upstream(self, reads: Selection) -> dict[str, Tensor]:
        """The older units that must be computed so that `reads` have what they read."""
        need = {name: set(units.tolist()) for name, units in reads.items()}
        changed = True
        while changed:
            before = sum(map(len, need.values()))
            for layer in self.layers.values():
                if not isinstance(layer, GrowableLayer) or layer.is_head or layer.per_unit:
                    continue
                for owner in range(len(self.tasks)):
                    rows = self.owned_units(owner)
                    if layer.block(owner) is not None and any(
                        need[s.space].intersection(rows[s.space].tolist()) for s in layer.writes
                    ):
                        columns = self.read_units(owner)
                        for s in layer.reads:
                            need[s.space].update(columns[s.space].tolist())
            changed = sum(map(len, need.values())) > before
        return {
            name: torch.tensor(sorted(units), dtype=torch.int64) for name, units in need.items()
        }

    def freeze(self) -> None:
        """End the newest task: none of its numbers changes any more."""
        self.tasks[-1].frozen = True
        for _, parameter in self.task_parameters(self.current):
            parameter.requires_grad_(False)
            parameter.grad = None
