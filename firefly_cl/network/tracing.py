"""Following channels through a traced graph: a union-find that ends in spaces and layouts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from firefly_cl.errors import UnsupportedOperation
from firefly_cl.network.graph import Node
from firefly_cl.network.space import GIVEN, Layout, Segment, Space


@dataclass
class Traced:
    """What `trace` finds: the nodes, the spaces, and the model's layers by node name."""

    nodes: list[Node]
    spaces: dict[str, Space]
    modules: dict[str, nn.Module]

    @property
    def classes(self) -> int:
        """Outputs of the head."""
        head = next(node for node in self.nodes if node.kind == "head")
        outputs = self.modules[head.name].out_features
        assert isinstance(outputs, int)
        return outputs


@dataclass
class Raw:
    """A node while the graph is still being walked: its channels are not yet units."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    channels: list[int]
    attributes: dict[str, Any]
    size: int
    flat: bool


class Tracing:
    """The state that rules read and extend while a graph is walked."""

    def __init__(self, head: str) -> None:
        self.head = head
        self.raw: dict[str, Raw] = {}
        self.modules: dict[str, nn.Module] = {}
        self._parent: list[int] = []
        self._sites: dict[str, str] = {}

    def fresh(self, count: int) -> list[int]:
        """`count` new channels, tied to nothing."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return list(range(start, start + count))

    def find(self, channel: int) -> int:
        """The unit that a channel belongs to."""
        while self._parent[channel] != channel:
            self._parent[channel] = self._parent[self._parent[channel]]
            channel = self._parent[channel]
        return channel

    def tie(self, one: int, other: int) -> None:
        """Make two channels parts of one unit."""
        a, b = sorted((self.find(one), self.find(other)))
        self._parent[b] = a

    def channels(self, node: Any) -> list[int]:
        """Channels of a node's output."""
        return self.raw[self.name_of(node)].channels

    def name_of(self, node: Any) -> str:
        """Name of an input; raises UnsupportedOperation when it is no traced tensor."""
        if not isinstance(node, fx.Node):
            raise UnsupportedOperation(f"{node!r} is not a tensor; write it as a module")
        if node.name not in self.raw:
            raise self.fail(node, "its result is not a tensor of channels")
        return node.name

    def is_after_head(self, node: Any) -> bool:
        """Whether a node's output is the head's, or computed from it."""
        raw = self.raw[self.name_of(node)]
        return raw.kind == "head" or (bool(raw.inputs) and not raw.channels)

    def add(
        self,
        node: fx.Node,
        kind: str,
        inputs: list[Any],
        channels: list[int],
        **attributes: Any,
    ) -> None:
        """Record a node; `attributes` must be JSON values."""
        shape = shape_of(node)
        size = 1
        for side in shape[2:]:
            size *= side
        names = tuple(self.name_of(i) for i in inputs)
        self.raw[node.name] = Raw(
            node.name, kind, names, channels, attributes, size, len(shape) == 2
        )
        self._sites[node.name] = site(node)

    def add_map(self, node: fx.Node, x: Any, operation: str, **attributes: Any) -> None:
        """Record an operation that treats every channel by itself."""
        self.add(node, "map", [x], self.channels(x), operation=operation, **attributes)

    def fail(self, node: fx.Node, why: str) -> UnsupportedOperation:
        """The error for a node, with its source line."""
        return UnsupportedOperation(f"{node.name} ({target_of(node)}){site(node)}: {why}")

    def finish(self) -> Traced:
        """Cut the units into spaces and every tensor into segments."""
        signatures: dict[int, list[tuple[int, int]]] = {}
        runs: dict[str, list[tuple[int, int]]] = {}
        cuts: dict[str, set[int]] = {}
        for index, raw in enumerate(self.raw.values()):
            cuts[raw.name] = self._cuts(raw, cuts)
            runs[raw.name] = _run_lengths([self.find(c) for c in raw.channels], cuts[raw.name])
            for unit, length in runs[raw.name]:
                signatures.setdefault(unit, []).append((index, length))
        members: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for unit, places in signatures.items():
            members.setdefault(tuple(places), []).append(unit)

        names = list(self.raw)
        spaces: dict[str, Space] = {}
        units: dict[str, list[int]] = {}
        space_of: dict[int, str] = {}
        for signature, group in members.items():
            base = names[signature[0][0]]
            name, n = base, 1
            while name in spaces:
                n += 1
                name = f"{base}_{n}"
            fixed = any(self.raw[names[i]].kind == "input" for i, _ in signature)
            spaces[name] = Space(name, {GIVEN if fixed else 0: len(group)}, fixed)
            units[name] = group
            space_of.update(dict.fromkeys(group, name))

        nodes = []
        layouts: dict[str, Layout] = {}
        for raw in self.raw.values():
            layout = layouts[raw.name] = self._layout(raw.name, runs[raw.name], space_of, units)
            self._check_writes(raw, layout, spaces)
            if raw.kind in ("add", "mul") and any(layouts[term] != layout for term in raw.inputs):
                raise self._unordered(raw.name)
            if raw.attributes.get("per_unit"):
                self._check_groups(raw, layouts[raw.inputs[0]], layout)
            nodes.append(
                Node(raw.name, raw.kind, raw.inputs, layout, raw.attributes, raw.size, raw.flat)
            )
        return Traced(nodes, spaces, self.modules)

    def _cuts(self, raw: Raw, cuts: dict[str, set[int]]) -> set[int]:
        """Channels of a node at which a part of a cat begins: new units come before them."""
        if raw.kind in ("conv", "linear") and not raw.attributes["per_unit"]:
            return set()
        found, base = set(), 0
        for name in raw.inputs:
            read = len(self.raw[name].channels)
            if raw.kind == "cat":
                found |= {base + cut for cut in (0, *cuts[name])}
                base += read
            elif read:
                found |= {cut * len(raw.channels) // read for cut in cuts[name]}
        return found

    def _layout(
        self,
        name: str,
        runs: list[tuple[int, int]],
        space_of: dict[int, str],
        units: dict[str, list[int]],
    ) -> Layout:
        layout = []
        at = 0
        while at < len(runs):
            space = space_of[runs[at][0]]
            here = runs[at : at + len(units[space])]
            repeats = {length for _, length in here}
            if [unit for unit, _ in here] != units[space] or len(repeats) != 1:
                raise self._unordered(name)
            layout.append(Segment(space, repeats.pop()))
            at += len(here)
        return tuple(layout)

    def _unordered(self, name: str) -> UnsupportedOperation:
        return UnsupportedOperation(
            f"{name}{self._sites[name]}: the order of its channels cannot be followed; "
            "join them in one order everywhere"
        )

    def _check_writes(self, raw: Raw, layout: Layout, spaces: dict[str, Space]) -> None:
        if raw.kind in ("conv", "linear") and any(spaces[s.space].fixed for s in layout):
            raise UnsupportedOperation(
                f"{raw.name}{self._sites[raw.name]}: its output is tied to the network's input "
                "channels, which cannot grow; put a dense layer between them"
            )

    def _check_groups(self, raw: Raw, reads: Layout, writes: Layout) -> None:
        """Raise UnsupportedOperation unless each group of a layer is one unit, read and written."""
        groups = self.modules[raw.name].groups
        assert isinstance(groups, int)
        for what, layout, channels in (
            ("reads", reads, len(self.raw[raw.inputs[0]].channels)),
            ("writes", writes, len(raw.channels)),
        ):
            found = next((s.repeat for s in layout if s.repeat * groups != channels), None)
            if found is not None:
                raise UnsupportedOperation(
                    f"{raw.name}{self._sites[raw.name]}: each of its {groups} groups {what} "
                    f"{channels // groups} channels of a unit that has {found} there; put a dense "
                    "layer between layers of different groups"
                )


def _run_lengths(values: list[int], cuts: set[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for at, value in enumerate(values):
        if runs and runs[-1][0] == value and at not in cuts:
            runs[-1] = (value, runs[-1][1] + 1)
        else:
            runs.append((value, 1))
    return runs


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's output on the example input."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else ()


_TORCH = str(Path(torch.__file__).parent / "_")[:-1]  # ends in a separator


def site(node: fx.Node) -> str:
    """' at FILE:LINE' of the model's source, or nothing if it is not known."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.stack_trace or "")
    found = [frame for frame in frames if not frame[0].startswith(_TORCH)]
    return f" at {found[-1][0]}:{found[-1][1]}" if found else ""


def target_of(node: fx.Node) -> str:
    """What a node calls, in a word."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")


ModuleRule = Callable[[Tracing, fx.Node, Any], None]
CallRule = Callable[[Tracing, fx.Node], None]

MODULE_RULES: dict[type[nn.Module], ModuleRule] = {}
CALL_RULES: dict[Any, CallRule] = {}


def register_rule(target: Any, rule: Callable[..., None]) -> None:
    """Teach the tracer an operation.

    target: a module class (rule(tracing, node, module)), or a function, its full name or the name
    of a tensor method (rule(tracing, node)). The rule calls `tracing.add` or `tracing.add_map`
    once.
    """
    if isinstance(target, type) and issubclass(target, nn.Module):
        MODULE_RULES[target] = rule
    else:
        CALL_RULES[target] = rule
