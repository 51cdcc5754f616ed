"""From a plain model to a graph of nodes over spaces, by torch.fx."""

from __future__ import annotations

import operator
from collections import Counter
from contextlib import redirect_stderr
from io import StringIO
from traceback import StackSummary
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.parametrize import is_parametrized

from firefly_cl.errors import ConfigurationError, UnsupportedOperation
from firefly_cl.network import rules as _rules  # noqa: F401 - its rules are registered
from firefly_cl.network.modes import evaluation
from firefly_cl.network.tracing import (
    CALL_RULES,
    MODULE_RULES,
    Raw,
    Traced,
    Tracing,
    shape_of,
    target_of,
)


class _Tracer(fx.Tracer):
    record_stack_traces = True

    def _filter_traceback_frames(self, user_stack_summary: StackSummary) -> StackSummary:
        """Frames from the model's forward on; `site` passes over those of torch.

        torch's own filter loads its compiler to know them: seconds of every process that traces.
        """
        names = [frame.name for frame in user_stack_summary]
        first = names.index("forward") if "forward" in names else len(names)
        frames = [frame for frame in user_stack_summary[first:] if frame.filename != __file__]
        return StackSummary.from_list(frames)

    def create_node(
        self,
        kind: str,
        target: Any,
        args: Any,
        kwargs: Any,
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        """A node by another name than the layer's where nn.ModuleDict has an attribute of it."""
        if name is None and kind == "call_module" and hasattr(nn.ModuleDict, str(target)):
            name = f"{target}_layer"
        return super().create_node(kind, target, args, kwargs, name, type_expr)

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
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise UnsupportedOperation(
            f"{type(model).__name__} cannot be traced by torch.fx ({_one_line(error)}); "
            "its forward must not branch on values or shapes of tensors, nor take their len()"
        ) from error
    tracing = Tracing(_find_head(model, graph, head))
    whole = fx.GraphModule(model, graph)
    graph.eliminate_dead_code()  # what nothing reads would take its share of a growth budget
    if not isinstance(example_input, Tensor) or example_input.dim() < 2:
        shape = tuple(getattr(example_input, "shape", ()))
        raise ConfigurationError(
            f"the example input, {type(example_input).__name__} {shape}, is no batch: pass a "
            "tensor (B, F) or (B, C, H, W)"
        )
    try:
        with evaluation(model), torch.no_grad(), redirect_stderr(StringIO()):  # it prints there
            ShapeProp(whole).propagate(example_input)
    except RuntimeError as error:
        raise ConfigurationError(
            f"the example input {tuple(example_input.shape)} does not fit the model "
            f"({_one_line(error.__cause__ or error)}); pass one batch as the model expects it"
        ) from error

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


def _one_line(error: BaseException) -> str:
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
    wanted = f"Linear {head}" if head else "Linear"
    raise ConfigurationError(f"the model has no {wanted} for a head (found: {found})")


def _walk_module(tracing: Tracing, node: fx.Node, module: nn.Module, calls: Counter[Any]) -> None:
    rule = next((MODULE_RULES[t] for t in type(module).__mro__ if t in MODULE_RULES), None)
    if rule is None:
        raise tracing.fail(
            node,
            f"no rule for {type(module).__name__}; teach it with "
            "firefly_cl.network.register_rule or replace it",
        )
    with_parameters = any(True for _ in module.parameters())
    if with_parameters and calls[node.target] > 1:
        raise tracing.fail(node, "a layer that is called twice cannot grow; make two layers")
    if is_parametrized(module):
        raise tracing.fail(
            node, "a parametrized layer cannot grow; call torch's remove_parametrizations before"
        )
    if with_parameters and any(tracing.is_after_head(x) for x in node.all_input_nodes):
        raise tracing.fail(node, "a layer behind the head cannot grow; end the model in its head")
    rule(tracing, node, module)


def _walk_call(tracing: Tracing, node: fx.Node) -> None:
    if not shape_of(node) and node.target in (getattr, operator.getitem, "size"):
        return
    function = node.target
    rule = CALL_RULES.get(function)
    if rule is None and not isinstance(function, str):
        rule = CALL_RULES.get(f"{function.__module__}.{function.__qualname__}")
    if rule is None:
        raise tracing.fail(
            node,
            f"no rule for {target_of(node)}; teach it with firefly_cl.network.register_rule "
            "or write it otherwise",
        )
    rule(tracing, node)


def _walk_output(tracing: Tracing, node: fx.Node) -> None:
    result = node.args[0]
    if not isinstance(result, fx.Node) or not tracing.is_after_head(result):
        raise tracing.fail(node, "a model must return one tensor, computed by its head")
    tracing.raw[node.name] = Raw(node.name, "output", (result.name,), [], {}, 1, True)
