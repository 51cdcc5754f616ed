"""What the tracer knows of each operation: one rule for every layer, map and join."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from firefly_cl.network.graph import STOCHASTIC_DEPTH
from firefly_cl.network.tracing import (
    CallRule,
    ModuleRule,
    Tracing,
    register_rule,
    shape_of,
    target_of,
)

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


def _input_of(node: fx.Node) -> Any:
    """The tensor that a function works on, the first argument or `input`."""
    return node.args[0] if node.args else node.kwargs.get("input")


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
        given.pop("input", None)
        x = _input_of(node)
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
    (torch.exp, "exp", ()),
    ("exp", "exp", ()),
    (torch.square, "square", ()),
    ("square", "square", ()),
    (torch.neg, "neg", ()),
    (operator.neg, "neg", ()),
    ("neg", "neg", ()),
    (torch.abs, "abs", ()),
    ("abs", "abs", ()),
    (F.max_pool2d, "max_pool2d", (*_POOL, "dilation", "ceil_mode")),
    (F.avg_pool2d, "avg_pool2d", (*_POOL, "ceil_mode", "count_include_pad")),
    (F.adaptive_avg_pool2d, "adaptive_avg_pool2d", ("output_size",)),
    (F.adaptive_max_pool2d, "adaptive_max_pool2d", ("output_size",)),
    (F.dropout, "dropout", ("p",)),
    (F.dropout2d, "dropout2d", ("p",)),
):
    register_rule(_function, map_call(_operation, *_names))


# --- arithmetic with numbers ------------------------------------------------------------------


def _with_number(tracing: Tracing, node: fx.Node, what: str) -> tuple[fx.Node, float, bool]:
    """The tensor and the number of an operation on both, and whether the tensor comes first."""
    given = dict(zip(("input", "other"), node.args, strict=False)) | dict(node.kwargs)
    terms = [given.pop(name) for name in ("input", "other") if name in given]
    numbers = [t for t in terms if isinstance(t, (int, float)) and not isinstance(t, bool)]
    tensors = [t for t in terms if isinstance(t, fx.Node)]
    if given or len(terms) != 2 or len(numbers) != 1 or len(tensors) != 1:
        raise tracing.fail(node, f"only {what} of a tensor and a number is known")
    return tensors[0], numbers[0], terms[0] is tensors[0]


def _multiply(tracing: Tracing, node: fx.Node) -> None:
    factors = [factor for factor in node.args if isinstance(factor, fx.Node)]
    if len(factors) == 2 and not node.kwargs:
        return _product(tracing, node, *factors)
    x, number, _ = _with_number(tracing, node, "a product of two tensors, or")
    tracing.add_map(node, x, "mul", other=number)


def _divide(tracing: Tracing, node: fx.Node) -> None:
    x, number, first = _with_number(tracing, node, "a quotient")
    if not first or not number:
        raise tracing.fail(node, "a tensor can be divided by a number other than 0 only")
    tracing.add_map(node, x, "mul", other=1 / number)


def _subtract(tracing: Tracing, node: fx.Node) -> None:
    x, number, first = _with_number(tracing, node, "a difference")
    if not first:
        raise tracing.fail(node, "only a difference tensor - number is known; write -x + number")
    tracing.add_map(node, x, "add", other=-number)


def _power(tracing: Tracing, node: fx.Node) -> None:
    x, number, first = _with_number(tracing, node, "a power")
    if not first:
        raise tracing.fail(node, "only a power tensor ** number is known; use exp")
    tracing.add_map(node, x, "pow", exponent=number)


# --- structure ----------------------------------------------------------------------------


def _mean(tracing: Tracing, node: fx.Node) -> None:
    given = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | dict(node.kwargs)
    _reduce(tracing, node, "amax" if "max" in target_of(node) else "mean", given)


def _reduce(tracing: Tracing, node: fx.Node, operation: str, given: dict[str, Any]) -> None:
    x = _input_of(node)
    before = len(shape_of(x))
    dims = given.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or [])
    if sorted(d % before for d in dims) != list(range(2, before)) or before < 3:
        raise tracing.fail(node, "only a mean or maximum over all of height and width is known")
    keepdim = bool(given.get("keepdim", False))
    tracing.add_map(node, x, operation, dim=dims, keepdim=keepdim)


def _reshape(tracing: Tracing, node: fx.Node, *_: Any) -> None:
    x = _input_of(node)
    before, after = shape_of(x), shape_of(node)
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
    if not all(isinstance(t, fx.Node) for t in terms):
        x, number, _ = _with_number(tracing, node, "a sum of two tensors, or")
        return tracing.add_map(node, x, "add", other=number)
    if node.kwargs:
        raise tracing.fail(node, "only a sum of two tensors is known")
    if len({shape_of(t) for t in terms}) != 1:  # type: ignore[arg-type]
        raise tracing.fail(node, "a sum that broadcasts is not known; make the shapes equal")
    _tie(tracing, node, "add")


def _product(tracing: Tracing, node: fx.Node, first: fx.Node, second: fx.Node) -> None:
    """Channel by channel, as in Hu et al. 2018, "Squeeze-and-Excitation", arXiv 1709.01507."""
    one, other = shape_of(first), shape_of(second)
    alike = len(one) == len(other) and one[:2] == other[:2]
    if not alike or not all(a == b or 1 in (a, b) for a, b in zip(one[2:], other[2:], strict=True)):
        raise tracing.fail(
            node, f"a product of {one} and {other} is not channel by channel; give both as many"
        )
    _tie(tracing, node, "mul")


def _tie(tracing: Tracing, node: fx.Node, kind: str) -> None:
    """Two tensors become one whose channels are those of both."""
    first, second = (tracing.channels(term) for term in node.args)
    if len(first) != len(second):
        what = {"add": "sum", "mul": "product"}[kind]
        raise tracing.fail(
            node, f"a {what} of the head's result and another cannot grow; join before"
        )
    for one, other in zip(first, second, strict=True):
        tracing.tie(one, other)
    tracing.add(node, kind, list(node.args), first)


def _cat(tracing: Tracing, node: fx.Node) -> None:
    given = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    terms: Any = given["tensors"]
    dim: Any = given.get("dim", given.get("axis", 0))
    if dim not in (1, 1 - len(shape_of(node))):
        raise tracing.fail(node, f"cat along dimension {dim}; only channels (1) can be joined")
    tracing.add(node, "cat", list(terms), [c for t in terms for c in tracing.channels(t)])


def _identity(tracing: Tracing, node: fx.Node, *_: Any) -> None:
    x = _input_of(node)
    tracing.add(node, "identity", [x], tracing.channels(x))


def _stochastic_depth(tracing: Tracing, node: fx.Node) -> None:
    given = dict(zip(("input", "p", "mode"), node.args, strict=False)) | dict(node.kwargs)
    p, mode = given["p"], given["mode"]
    if not p:
        return _identity(tracing, node)
    tracing.add_map(node, _input_of(node), STOCHASTIC_DEPTH, p=p, mode=mode)


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
    (operator.mul, _multiply),
    (operator.imul, _multiply),
    (torch.mul, _multiply),
    ("mul", _multiply),
    ("mul_", _multiply),
    (operator.truediv, _divide),
    (torch.div, _divide),
    ("div", _divide),
    (operator.sub, _subtract),
    (torch.sub, _subtract),
    ("sub", _subtract),
    (operator.pow, _power),
    (torch.pow, _power),
    ("pow", _power),
    (torch.cat, _cat),
    (torch.concat, _cat),
    ("torchvision.ops.stochastic_depth.stochastic_depth", _stochastic_depth),
):
    register_rule(_target_, _rule)
register_rule(nn.Flatten, _reshape)
register_rule(nn.Identity, _identity)
