"""One task's function as an ordinary module: what people deploy, and the oracle of the tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from firefly_cl.errors import EditError
from firefly_cl.network.graph import MAPS, STOCHASTIC_DEPTH, Node
from firefly_cl.network.laterals import LateralHead, per_channel, tapped
from firefly_cl.network.layers import GrowableLayer, GrowableNorm, UnitsOf
from firefly_cl.network.net import FireflyNet
from firefly_cl.network.space import GIVEN, Selection, channel_count, positions


@torch.no_grad()
def extract(net: FireflyNet, task: int | None = None) -> fx.GraphModule:
    """A dense module of the units that are active for a task (the newest unless given).

    It maps (B, C, H, W) to the task's logits as `net(x, task)` does, holds only Conv2d, Linear,
    BatchNorm and functions, and depends on nothing here; its weights are copies. Where an older
    unit would read a newer one, its weights hold zeros. Raises ConfigurationError for a task
    that the network has not seen. It is in evaluation mode where the task is frozen, else in the
    network's mode.
    """
    task = net.check_task(task)
    root, graph = nn.Module(), fx.Graph()
    x = graph.placeholder(net.nodes[0].name)
    made = _add_task(net, task, root, graph, x, "")
    logits = made[net.nodes[-1].name]
    lateral = net.lateral(task)
    if lateral is not None:
        logits = _add_laterals(net, lateral, root, graph, x, logits)
    graph.output(logits)
    module = fx.GraphModule(root, graph, f"Task{task}")
    module.graph.eliminate_dead_code()  # heads of older tasks
    module.delete_all_unused_submodules()
    module.recompile()
    return module.train(net.training and not net.tasks[task].frozen)


def _add_task(
    net: FireflyNet, task: int, root: nn.Module, graph: fx.Graph, x: fx.Node, prefix: str
) -> dict[str, fx.Node]:
    """Put the active units of a task into a graph; what each node became, by its name."""
    units, reads, owned = net.active_units(task), cache(net.read_units), cache(net.owned_units)
    made: dict[str, fx.Node] = {}
    for node in net.nodes:
        inputs = [made[i] for i in node.inputs if i in made]
        name = prefix + node.name
        if node.kind == "input":
            made[node.name] = x
        elif not inputs or (node.layout and not channel_count(node.layout, units)):
            continue
        elif node.kind in ("identity", "output"):
            made[node.name] = inputs[0]
        elif node.name in net.layers:
            with torch.random.fork_rng(devices=[]):  # torch's layers draw weights, then replaced
                root.add_module(name, _module(net, node, task, units, reads, owned))
            made[node.name] = graph.call_module(name, (inputs[0],))
        elif node.kind == "add":
            total = inputs[0]
            for term in inputs[1:]:
                total = graph.call_function(torch.add, (total, term))
            made[node.name] = total
        elif node.kind == "mul":
            if len(inputs) == len(node.inputs):
                made[node.name] = graph.call_function(torch.mul, tuple(inputs))
        elif node.kind == "cat":
            made[node.name] = graph.call_function(torch.cat, (inputs, 1))
        elif node.kind == "flatten":
            made[node.name] = graph.call_function(torch.flatten, (inputs[0], 1))
        else:
            made[node.name] = _map(root, graph, node, inputs[0], name)
    return made


def _add_laterals(
    net: FireflyNet,
    lateral: LateralHead,
    root: nn.Module,
    graph: fx.Graph,
    x: fx.Node,
    logits: fx.Node,
) -> fx.Node:
    """Put older tasks, and what a lateral head makes of their features, into a graph."""
    bias: Tensor | None = lateral.bias.detach().clone()
    for source in lateral.sources:
        name = f"task{source}_lateral"
        made = _add_task(net, source, root, graph, x, f"task{source}_")
        units, owned = net.active_units(source), net.owned_units(source)
        left, parts, columns = lateral.weights[str(source)].detach(), [], []
        for node in tapped(net):
            kinds = per_channel(node)
            own = channel_count(node.layout, owned)
            weights, left = left[:, : own * kinds], left[:, own * kinds :]
            if not own or node.name not in made:
                continue
            maps = made[node.name]
            if node.size > 1:
                over = (maps, (2, 3))
                parts += [graph.call_function(op, over) for op in (torch.mean, torch.amax)]
            else:
                parts.append(maps if node.flat else graph.call_function(torch.flatten, (maps, 1)))
            at, _ = positions(node.layout, units, owned)
            for weight in weights.chunk(kinds, 1):
                whole = weight.new_zeros(len(weight), channel_count(node.layout, units))
                whole[:, at] = weight
                columns.append(whole)
        weight = torch.cat(columns, 1)
        with torch.random.fork_rng(devices=[]):
            linear = nn.Linear(weight.shape[1], len(weight), bias is not None)
        root.add_module(name, _filled(linear, {"weight": weight, "bias": bias}))
        whole_features = graph.call_function(torch.cat, (parts, 1))
        drawn = graph.call_module(name, (whole_features,))
        logits = graph.call_function(torch.add, (logits, drawn))
        bias = None
    return logits


def _map(root: nn.Module, graph: fx.Graph, node: Node, x: fx.Node, name: str) -> fx.Node:
    attributes: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in node.attributes.items()
    }
    operation = attributes.pop("operation")
    if operation.startswith("dropout"):
        kind = nn.Dropout2d if operation == "dropout2d" else nn.Dropout
        root.add_module(name, kind(**attributes))
        return graph.call_module(name, (x,))
    if operation == STOCHASTIC_DEPTH:
        from torchvision.ops import StochasticDepth

        root.add_module(name, StochasticDepth(**attributes))
        return graph.call_module(name, (x,))
    return graph.call_function(MAPS[operation], (x,), attributes)


def _module(
    net: FireflyNet, node: Node, task: int, units: Selection, reads: UnitsOf, owned: UnitsOf
) -> nn.Module:
    layer = net.layers[node.name]
    if isinstance(layer, GrowableNorm):
        norm = layer.assemble(range(GIVEN, task + 1), units, owned)
        kind = nn.BatchNorm1d if node.flat else nn.BatchNorm2d
        out = kind(len(norm.mean), layer.eps, layer.momentum, layer.affine)
        values: dict[str, Tensor | None] = {
            "running_mean": norm.mean,
            "running_var": norm.var,
            "weight": norm.weight,
            "bias": norm.bias,
            "num_batches_tracked": torch.tensor(0, device=norm.mean.device),
        }
        return _filled(out, values)
    assert isinstance(layer, GrowableLayer)
    if layer.is_head:
        block = layer.block(task)
        if block is None:
            raise EditError(f"task {task} has no head")
        whole = layer.whole_rows(task, net.read_units, owned)
        weight = _over_active(layer, units, reads(task), whole)
        bias = None if block.bias is None else block.bias.detach().clone()
    else:
        weight, bias = layer.assemble(range(task + 1), units, units, reads, owned)
    made: nn.Module
    if layer.is_conv:
        channels = channel_count(layer.reads, units)
        made = nn.Conv2d(
            channels,
            weight.shape[0],
            layer.kernel,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            channels // weight.shape[1] if layer.per_unit else 1,
            bias is not None,
        )
    else:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return _filled(made, {"weight": weight, "bias": bias})


def _over_active(layer: GrowableLayer, units: Selection, read: Selection, whole: Tensor) -> Tensor:
    """A head's rows over what the task reads, as rows over everything active."""
    at, _ = positions(layer.reads, units, read)
    weight = whole.new_zeros(whole.shape[0], channel_count(layer.reads, units))
    weight[:, at] = whole
    return weight


def _filled(module: nn.Module, values: dict[str, Tensor | None]) -> nn.Module:
    state = {key: value for key, value in values.items() if value is not None}
    like = next(iter(state.values()))
    module = module.to(like.device, like.dtype)
    module.load_state_dict(state)
    return module
