"""The state of a training between two epochs: network, optimizer, plugins, random numbers."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor

from firefly_cl.continual.snapshot import Snapshot, State, WithinTask

_AVALANCHES = (EvaluationPlugin, PeriodicEval, Clock)
"""Plugins that every strategy has; they count and show, and decide nothing."""


def training_state(strategy: Any) -> State | None:
    """All that changes while a strategy trains on an experience, after one of its epochs.

    A model whose structure changes has methods `structure()` -> JSON values and
    `rebuild(structure, state)`. None where a plugin cannot tell what it changes.
    """
    tensors: dict[str, Tensor] = {}
    plugins: list[dict[str, Any]] = []
    for number, plugin in enumerate(_plugins(strategy)):
        state = plugin.within_task(strategy) if isinstance(plugin, WithinTask) else None
        if state is None:
            return None
        tensors.update({f"plugin {number} {name}": part for name, part in state[0].items()})
        plugins.append(state[1])
    model, optimizer = strategy.model, strategy.optimizer
    tensors.update({f"model {name}": part for name, part in model.state_dict().items()})
    names = {parameter: name for name, parameter in model.named_parameters()}
    values: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        name = names[parameter]
        values[name] = {key: part for key, part in state.items() if not isinstance(part, Tensor)}
        for key in state.keys() - values[name].keys():
            tensors[f"optimizer {key} {name}"] = state[key]
    groups = [
        {**group, "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    tensors["random"] = torch.get_rng_state()
    if strategy.device.type == "cuda":
        tensors["random cuda"] = torch.cuda.get_rng_state(strategy.device)
    structure = model.structure() if hasattr(model, "structure") else None
    return tensors, {
        "structure": structure,
        "optimizer": values,
        "groups": groups,
        "plugins": plugins,
    }


def restore_training(strategy: Any, snapshot: Snapshot) -> None:
    """Take up what `training_state` told, in a strategy that has just begun the experience.

    Raises KeyError, ValueError or RuntimeError where the snapshot is of another training.
    """
    values, device = snapshot.values, strategy.device
    model, optimizer = strategy.model, strategy.optimizer
    state = _part(snapshot, "model")
    if values["structure"] is not None:
        model.rebuild(values["structure"], state)
    own = model.state_dict(keep_vars=True)
    if own.keys() != state.keys():
        raise ValueError(f"other tensors: {', '.join(sorted(own.keys() ^ state.keys())[:3])}")
    for name, part in own.items():
        if part.shape != state[name].shape:
            raise ValueError(f"{name} has the shape {tuple(state[name].shape)}")
        part.data = state[name].to(device)  # in place of a copy, which would keep other strides
    parameters = dict(model.named_parameters())
    optimizer.param_groups[:] = [
        {**group, "params": [parameters[name] for name in group["params"]]}
        for group in values["groups"]
    ]
    optimizer.state.clear()
    for name, told in values["optimizer"].items():
        optimizer.state[parameters[name]] = dict(told)
    for name, part in _part(snapshot, "optimizer").items():
        key, _, name = name.partition(" ")
        parameter = parameters[name]
        # counts of steps stay on the CPU
        optimizer.state[parameter][key] = part.to(device) if part.shape == parameter.shape else part
    for number, plugin in enumerate(_plugins(strategy)):
        plugin.go_on(strategy, (_part(snapshot, f"plugin {number}"), values["plugins"][number]))
    torch.set_rng_state(snapshot.tensors["random"])
    if "random cuda" in snapshot.tensors:
        torch.cuda.set_rng_state(snapshot.tensors["random cuda"], device)


def _plugins(strategy: Any) -> list[Any]:
    return [plugin for plugin in strategy.plugins if not isinstance(plugin, _AVALANCHES)]


def _part(snapshot: Snapshot, kind: str) -> dict[str, Tensor]:
    """The tensors of one kind, by the rest of their names."""
    start = f"{kind} "
    return {
        name[len(start) :]: part
        for name, part in snapshot.tensors.items()
        if name.startswith(start)
    }
