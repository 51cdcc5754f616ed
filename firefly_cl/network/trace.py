"""From a plain model to a graph of nodes over spaces, by torch.fx and a union-find of channels."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from firefly_cl.errors import ConfigurationError, UnsupportedOperation
from firefly_cl.network.graph import Node
from firefly_cl.network.space import GIVEN, Layout, Segment, Space


@dataclass
class Traced:
    """What `trace` finds: the nodes, the spaces, and the model's layers by node name."""

    nodes: list[Node]
    spaces: dict[str, Space]
    modules: dict[str, nn.Module]


@dataclass
class _Raw:
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
        self.raw: dict[str, _Raw] = {}
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
        self.raw[node.name] = _Raw(
            node.name, kind, names, channels, attributes, size, len(shape) == 2
        )
        self._sites[node.name] = site(node)

    def add_map(self, node: fx.Node, x: Any, operation: str, **attributes: Any) -> None:
        """Record an operation that treats every channel by itself."""
        self.add(node, "map", [x], self.channels(x), operation=operation, **attributes)

    def fail(self, node: fx.Node, why: str) -> UnsupportedOperation:
        """The error for a node, with its source line."""
        return UnsupportedOperation(f"{node.name} ({_target(node)}){site(node)}: {why}")

    def finish(self) -> Traced:
        """Cut the units into spaces and every tensor into segments."""
        signatures: dict[int, list[tuple[int, int]]] = {}
        runs: dict[str, list[tuple[int, int]]] = {}
        for index, raw in enumerate(self.raw.values()):
            runs[raw.name] = _run_lengths([self.find(c) for c in raw.channels])
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
        for raw in self.raw.values():
            layout = self._layout(raw.name, runs[raw.name], space_of, units)
            self._check_writes(raw, layout, spaces)
            nodes.append(
                Node(raw.name, raw.kind, raw.inputs, layout, raw.attributes, raw.size, raw.flat)
            )
        return Traced(nodes, spaces, self.modules)

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
                raise UnsupportedOperation(
                    f"{name}{self._sites[name]}: the order of its channels cannot be followed; "
                    "join them in one order everywhere"
                )
            layout.append(Segment(space, repeats.pop()))
            at += len(here)
        return tuple(layout)

    def _check_writes(self, raw: _Raw, layout: Layout, spaces: dict[str, Space]) -> None:
        if raw.kind in ("conv", "linear") and any(spaces[s.space].fixed for s in layout):
            raise UnsupportedOperation(
                f"{raw.name}{self._sites[raw.name]}: its output is tied to the network's input "
                "channels, which cannot grow; put a dense layer between them"
            )


def _run_lengths(values: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1] = (value, runs[-1][1] + 1)
        else:
            runs.append((value, 1))
    return runs


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's output on the example input."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else ()


def site(node: fx.Node) -> str:
    """' at FILE:LINE' of the model's source, or nothing if it is not known."""
    found = re.findall(r'File "([^"]+)", line (\d+)', node.stack_trace or "")
    return f" at {found[-1][0]}:{found[-1][1]}" if found else ""


def _target(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")


ModuleRule = Callable[[Tracing, fx.Node, Any], None]
CallRule = Callable[[Tracing, fx.Node], None]

MODULE_RULES: dict[type[nn.Module], ModuleRule] = {}
CALL_RULES: dict[Any, CallRule] = {}


def register_rule(target: Any, rule: Callable[..., None]) -> None:
    """Teach the tracer an operation.

    target: a module class (rule(tracing, node, module)), or a function or the name of a
    tensor method (rule(tracing, node)). The rule calls `tracing.add` or `tracing.add_map` once.
    """
    if isinstance(target, type) and issubclass(target, nn.Module):
        MODULE_RULES[target] = rule
    else:
        CALL_RULES[target] = rule


class _Tracer(fx.Tracer):
    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in MODULE_RULES or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, example_input: Tensor, head: str | None = None) -> Traced:
    """Trace `model` on one batch and find its spaces.

    example_input: (B, C, H, W) or (B, F). head: qualified name of the Linear that becomes one
    head per task; the last one called unless given. Raises UnsupportedOperation, which names
    the node and its source line, and ConfigurationError when there is no such head.
    """
    try:
        graph = _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError) as error:
        raise UnsupportedOperation(
            f"{type(model).__name__} cannot be traced by torch.fx ({_one_line(error)}); "
            "its forward must not branch on tensor values"
        ) from error
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            ShapeProp(fx.GraphModule(model, graph)).propagate(example_input)
    except RuntimeError as error:
        raise ConfigurationError(
            f"the example input {tuple(example_input.shape)} does not fit the model "
            f"({_one_line(error)}); pass one batch as the model expects it"
        ) from error
    finally:
        model.train(training)

    tracing = Tracing(_find_head(model, graph, head))
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        if node.op == "placeholder":
            if tracing.raw:
                raise tracing.fail(node, "a model must take one tensor")
            tracing.add(node, "input", [], tracing.fresh(shape_of(node)[1]))
        elif node.op == "call_module":
            _walk_module(tracing, node, model.get_submodule(str(node.target)), calls)
        elif node.op in ("call_function", "call_method"):
            _walk_call(tracing, node)
        elif node.op == "output":
            _walk_output(tracing, node)
        else:
            raise tracing.fail(node, "a parameter used outside a layer cannot grow; use a module")
    return tracing.finish()


def _one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _find_head(model: nn.Module, graph: fx.Graph, head: str | None) -> str:
    linears = [
        str(node.target)
        for node in graph.nodes
        if node.op == "call_module" and isinstance(model.get_submodule(node.target), nn.Linear)
    ]
    if head is None and linears:
        return linears[-1]
    if head in linears:
        return str(head)
    found = ", ".join(linears) or "none"
    raise ConfigurationError(f"the model has no Linear {head or ''} for a head (found: {found})")


def _walk_module(tracing: Tracing, node: fx.Node, module: nn.Module, calls: Counter[Any]) -> None:
    rule = next((MODULE_RULES[t] for t in type(module).__mro__ if t in MODULE_RULES), None)
    if rule is None:
        raise tracing.fail(
            node,
            f"no rule for {type(module).__name__}; teach it with "
            "firefly_cl.network.register_rule or replace it",
        )
    if calls[node.target] > 1 and any(True for _ in module.parameters()):
        raise tracing.fail(node, "a layer that is called twice cannot grow; make two layers")
    rule(tracing, node, module)


def _walk_call(tracing: Tracing, node: fx.Node) -> None:
    if not shape_of(node) and node.target in (getattr, operator.getitem, "size"):
        return
    rule = CALL_RULES.get(node.target)
    if rule is None:
        raise tracing.fail(
            node,
            f"no rule for {_target(node)}; teach it with firefly_cl.network.register_rule "
            "or write it otherwise",
        )
    rule(tracing, node)


def _walk_output(tracing: Tracing, node: fx.Node) -> None:
    result = node.args[0]
    if not isinstance(result, fx.Node) or not tracing.is_after_head(result):
        raise tracing.fail(node, "a model must return one tensor, computed by its head")
    tracing.raw[node.name] = _Raw(node.name, "output", (result.name,), [], {}, 1, True)


# --- layers -------------------------------------------------------------------------------


def _conv(tracing: Tracing, node: fx.Node, conv: nn.Conv2d) -> None:
    if conv.padding_mode != "zeros":
        raise tracing.fail(node, f"padding mode {conv.padding_mode!r} is not supported; use zeros")
    inputs, outputs = tracing.channels(node.args[0]), tracing.fresh(conv.out_channels)
    per_unit = conv.groups > 1
    if per_unit:
        reads, writes = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        for group in range(conv.groups):
            first = inputs[group * reads]
            for channel in inputs[group * reads : (group + 1) * reads]:
                tracing.tie(first, channel)
            for channel in outputs[group * writes : (group + 1) * writes]:
                tracing.tie(first, channel)
    padding = conv.padding if isinstance(conv.padding, str) else list(conv.padding)
    tracing.modules[node.name] = conv
    tracing.add(
        node,
        "conv",
        [node.args[0]],
        outputs,
        kernel=list(conv.kernel_size),
        stride=list(conv.stride),
        padding=padding,
        dilation=list(conv.dilation),
        bias=conv.bias is not None,
        per_unit=per_unit,
    )


def _linear(tracing: Tracing, node: fx.Node, linear: nn.Linear) -> None:
    if len(shape_of(node)) != 2:
        raise tracing.fail(node, "a Linear must see (batch, features); flatten before it")
    tracing.modules[node.name] = linear
    kind = "head" if node.target == tracing.head else "linear"
    outputs = [] if kind == "head" else tracing.fresh(linear.out_features)
    bias = linear.bias is not None
    tracing.add(node, kind, [node.args[0]], outputs, bias=bias, per_unit=False)


def _norm(tracing: Tracing, node: fx.Node, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    if not norm.track_running_stats:
        raise tracing.fail(node, "batch norm needs running statistics; set track_running_stats")
    if norm.momentum is None:
        raise tracing.fail(node, "batch norm with momentum=None is not supported; set a momentum")
    tracing.modules[node.name] = norm
    x = node.args[0]
    tracing.add(
        node,
        "norm",
        [x],
        tracing.channels(x),
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
    )


register_rule(nn.Conv2d, _conv)
register_rule(nn.Linear, _linear)
register_rule(nn.BatchNorm1d, _norm)
register_rule(nn.BatchNorm2d, _norm)


# --- operations that treat every channel alike ------------------------------------------------


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def map_module(operation: str, *names: str) -> ModuleRule:
    """A rule for a module without parameters: the map `operation` with some attributes."""

    def rule(tracing: Tracing, node: fx.Node, module: nn.Module) -> None:
        attributes = {name: _json(getattr(module, name)) for name in names}
        tracing.add_map(node, node.args[0], operation, **attributes)

    return rule


def map_call(operation: str, *names: str) -> CallRule:
    """A rule for a function or method: the map `operation`; names: of its arguments in order."""

    def rule(tracing: Tracing, node: fx.Node) -> None:
        given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        x = given.pop("input", None) or node.args[0]
        for ignored in ("inplace", "training"):
            given.pop(ignored, None)
        tracing.add_map(node, x, operation, **{k: _json(v) for k, v in given.items()})

    return rule


_POOL = ("kernel_size", "stride", "padding")

for _module, _operation, _names in (
    (nn.ReLU, "relu", ()),
    (nn.ReLU6, "relu6", ()),
    (nn.LeakyReLU, "leaky_relu", ("negative_slope",)),
    (nn.ELU, "elu", ("alpha",)),
    (nn.CELU, "celu", ("alpha",)),
    (nn.SELU, "selu", ()),
    (nn.GELU, "gelu", ("approximate",)),
    (nn.SiLU, "silu", ()),
    (nn.Mish, "mish", ()),
    (nn.Softplus, "softplus", ("beta", "threshold")),
    (nn.Hardtanh, "hardtanh", ("min_val", "max_val")),
    (nn.Hardswish, "hardswish", ()),
    (nn.Hardsigmoid, "hardsigmoid", ()),
    (nn.Sigmoid, "sigmoid", ()),
    (nn.Tanh, "tanh", ()),
    (nn.MaxPool2d, "max_pool2d", (*_POOL, "dilation", "ceil_mode")),
    (nn.AvgPool2d, "avg_pool2d", (*_POOL, "ceil_mode", "count_include_pad")),
    (nn.AdaptiveAvgPool2d, "adaptive_avg_pool2d", ("output_size",)),
    (nn.AdaptiveMaxPool2d, "adaptive_max_pool2d", ("output_size",)),
    (nn.Dropout, "dropout", ("p",)),
    (nn.Dropout2d, "dropout2d", ("p",)),
):
    register_rule(_module, map_module(_operation, *_names))

for _function, _operation, _names in (
    (F.relu, "relu", ()),
    (torch.relu, "relu", ()),
    ("relu", "relu", ()),
    ("relu_", "relu", ()),
    (F.relu6, "relu6", ()),
    (F.leaky_relu, "leaky_relu", ("negative_slope",)),
    (F.elu, "elu", ("alpha",)),
    (F.celu, "celu", ("alpha",)),
    (F.selu, "selu", ()),
    (F.gelu, "gelu", ()),
    (F.silu, "silu", ()),
    (F.mish, "mish", ()),
    (F.softplus, "softplus", ("beta", "threshold")),
    (F.hardtanh, "hardtanh", ("min_val", "max_val")),
    (F.hardswish, "hardswish", ()),
    (F.hardsigmoid, "hardsigmoid", ()),
    (torch.sigmoid, "sigmoid", ()),
    (F.sigmoid, "sigmoid", ()),
    ("sigmoid", "sigmoid", ()),
    (torch.tanh, "tanh", ()),
    (F.tanh, "tanh", ()),
    ("tanh", "tanh", ()),
    (F.max_pool2d, "max_pool2d", (*_POOL, "dilation", "ceil_mode")),
    (F.avg_pool2d, "avg_pool2d", (*_POOL, "ceil_mode", "count_include_pad")),
    (F.adaptive_avg_pool2d, "adaptive_avg_pool2d", ("output_size",)),
    (F.adaptive_max_pool2d, "adaptive_max_pool2d", ("output_size",)),
    (F.dropout, "dropout", ("p",)),
    (F.dropout2d, "dropout2d", ("p",)),
):
    register_rule(_function, map_call(_operation, *_names))


# --- structure ----------------------------------------------------------------------------


def _mean(tracing: Tracing, node: fx.Node) -> None:
    given = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | dict(node.kwargs)
    _reduce(tracing, node, "amax" if "max" in _target(node) else "mean", given)


def _reduce(tracing: Tracing, node: fx.Node, operation: str, given: dict[str, Any]) -> None:
    before = len(shape_of(node.args[0]))  # type: ignore[arg-type]
    dims = given.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or [])
    if sorted(d % before for d in dims) != list(range(2, before)) or before < 3:
        raise tracing.fail(node, "only a mean or maximum over all of height and width is known")
    keepdim = bool(given.get("keepdim", False))
    tracing.add_map(node, node.args[0], operation, dim=dims, keepdim=keepdim)


def _reshape(tracing: Tracing, node: fx.Node, *_: Any) -> None:
    x = node.args[0]
    before, after = shape_of(x), shape_of(node)  # type: ignore[arg-type]
    features = 1
    for side in before[1:]:
        features *= side
    if after == before:
        tracing.add(node, "identity", [x], tracing.channels(x))
    elif after == (before[0], features):
        repeat = features // before[1]
        channels = [c for c in tracing.channels(x) for _ in range(repeat)]
        tracing.add(node, "flatten", [x], channels)
    else:
        raise tracing.fail(node, f"reshape {before} to {after} is not a flatten; use flatten(1)")


def _add(tracing: Tracing, node: fx.Node) -> None:
    terms = list(node.args)
    if node.kwargs or not all(isinstance(t, fx.Node) for t in terms):
        raise tracing.fail(node, "only a sum of two tensors is known")
    if len({shape_of(t) for t in terms}) != 1:  # type: ignore[arg-type]
        raise tracing.fail(node, "a sum that broadcasts is not known; make the shapes equal")
    first = tracing.channels(terms[0])
    for one, other in zip(first, tracing.channels(terms[1]), strict=True):
        tracing.tie(one, other)
    tracing.add(node, "add", terms, first)


def _cat(tracing: Tracing, node: fx.Node) -> None:
    given = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    terms: Any = given["tensors"]
    dim: Any = given.get("dim", given.get("axis", 0))
    if dim not in (1, 1 - len(shape_of(node))):
        raise tracing.fail(node, f"cat along dimension {dim}; only channels (1) can be joined")
    tracing.add(node, "cat", list(terms), [c for t in terms for c in tracing.channels(t)])


def _identity(tracing: Tracing, node: fx.Node, *_: Any) -> None:
    tracing.add(node, "identity", [node.args[0]], tracing.channels(node.args[0]))


for _target_, _rule in (
    (torch.mean, _mean),
    ("mean", _mean),
    (torch.amax, _mean),
    ("amax", _mean),
    (torch.flatten, _reshape),
    ("flatten", _reshape),
    ("view", _reshape),
    ("reshape", _reshape),
    (torch.reshape, _reshape),
    ("contiguous", _identity),
    (operator.add, _add),
    (operator.iadd, _add),
    (torch.add, _add),
    ("add", _add),
    ("add_", _add),
    (torch.cat, _cat),
    (torch.concat, _cat),
):
    register_rule(_target_, _rule)
register_rule(nn.Flatten, _reshape)
register_rule(nn.Identity, _identity)
