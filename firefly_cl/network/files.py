"""Networks in files: safetensors whose header holds the structure as JSON. No pickle is read."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from firefly_cl.errors import FileError, Unreadable
from firefly_cl.network.graph import MAPS, Node
from firefly_cl.network.laterals import LateralHead, feature_count
from firefly_cl.network.layers import Block, GrowableLayer, GrowableNorm
from firefly_cl.network.net import FireflyNet, Task
from firefly_cl.network.space import Space, channel_count

SCHEMA = 3
"""Version of the structure in the header; a file with a larger one is refused.

Lateral heads came with 2, products with 3; files without them are written as 1 or 2, which older
versions read.
"""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is, at any moment, either as before or whole.

    Raises FileError if the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise FileError(f"cannot write {path} ({error.strerror}): choose another folder") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise FileError(f"cannot write {path} ({error.strerror}): free some room") from error
    finally:
        Path(name).unlink(missing_ok=True)


def save_net(net: FireflyNet, path: Path | str, extra: Mapping[str, Any] | None = None) -> None:
    """Write a network to one safetensors file, whole or not at all.

    Weights and structure share the file, so that neither can be newer than the other. extra:
    JSON values kept beside the structure. Raises FileError.
    """
    products = any(node.kind == "mul" for node in net.nodes)
    schema = 3 if products else 2 if len(net.laterals) else 1
    structure = {"schema": schema, **structure_of(net), "extra": dict(extra or {})}
    state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    write_atomically(Path(path), save(state, {"firefly_cl": json.dumps(structure)}))


def structure_of(net: FireflyNet) -> dict[str, Any]:
    """Nodes, spaces and tasks of a network, as JSON values."""
    return {
        "nodes": [node.to_json() for node in net.nodes],
        "spaces": [
            {"name": s.name, "widths": sorted(s.widths.items()), "fixed": s.fixed}
            for s in net.spaces.values()
        ],
        "tasks": [
            {
                "classes": task.classes,
                "frozen": task.frozen,
                "reads": {name: _runs(units) for name, units in task.reads.items()},
                "active": {name: _runs(units) for name, units in task.active.items()},
            }
            for task in net.tasks
        ],
    }


def load_net(path: Path | str) -> tuple[FireflyNet, dict[str, Any]]:
    """Read what `save_net` wrote: the network (on the CPU, in evaluation mode) and `extra`.

    Raises FileError for a file that is missing, damaged, or written by a newer version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("firefly_cl")
            # copied: what is read is a view of the file, at any address, and sums depend on that
            state = {key: file.get_tensor(key).clone() for key in file.keys()}
        structure = json.loads(header or "")
        schema = structure["schema"]
    except FileNotFoundError as error:
        raise FileError(f"there is no model file {path}: restore or rerun") from error
    except OSError as error:
        raise Unreadable.of(path, error) from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path} is damaged or no model of firefly_cl: restore or rerun") from error
    if not isinstance(schema, int) or schema > SCHEMA:
        raise FileError(
            f"{path} has schema {schema}, this version reads up to {SCHEMA}: update firefly_cl"
        )
    try:
        operations = {node["attributes"].get("operation", "relu") for node in structure["nodes"]}
        if unknown := operations - set(MAPS):
            raise FileError(
                f"{path} has an operation {sorted(unknown)[0]!r} that this process does not know: "
                "teach it with register_map before you read the file"
            )
        return net_of(structure, state), structure["extra"]
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError) as e:
        why = str(e).strip().partition("\n")[0]
        raise FileError(f"{path} does not fit together ({why}): restore or rerun") from e


def net_of(structure: Mapping[str, Any], state: Mapping[str, Tensor]) -> FireflyNet:
    """The network of what `structure_of` told and its `state_dict`, in evaluation mode.

    Raises one of several errors where the two do not fit together.
    """
    spaces = {
        s["name"]: Space(s["name"], {int(o): int(w) for o, w in s["widths"]}, bool(s["fixed"]))
        for s in structure["spaces"]
    }
    net = FireflyNet([Node.from_json(node) for node in structure["nodes"]], spaces)
    net.tasks = [
        Task(
            int(task["classes"]),
            {name: _units(runs) for name, runs in task["reads"].items()},
            {name: _units(runs) for name, runs in task["active"].items()},
            bool(task["frozen"]),
        )
        for task in structure["tasks"]
    ]
    blocks: dict[tuple[str, int], dict[str, Tensor]] = {}
    laterals: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        part, name, *rest = key.split(".")
        if part == "laterals":
            laterals.setdefault(int(name), {})[rest[-1]] = value
            continue
        _, number, field = rest
        blocks.setdefault((name, int(number)), {})[field] = value
    for (name, owner), values in blocks.items():
        layer = net.layers[name]
        if isinstance(layer, GrowableLayer):
            _check_shape(net, layer, name, owner, values)
            block = Block(values["from_old"], values["from_own"], values.get("bias"))
            layer.blocks[str(owner)] = block
        elif isinstance(layer, GrowableNorm):
            channels = channel_count(layer.writes, net.owned_units(owner))
            layer.add_block(owner, channels, values["running_mean"])
    for reader, values in sorted(laterals.items()):
        net.laterals[str(reader)] = _lateral_head(net, reader, values)
    net.load_state_dict(state, strict=True)
    for owner, task in enumerate(net.tasks):
        if task.frozen:
            for _, parameter in net.task_parameters(owner):
                parameter.requires_grad_(False)
    for layer in net.layers.values():
        given = layer.block(-1)  # type: ignore[operator]
        if given is not None:
            given.requires_grad_(False)
    return net.eval()


def _check_shape(
    net: FireflyNet, layer: GrowableLayer, name: str, owner: int, values: Mapping[str, Tensor]
) -> None:
    rows, old, own = net.block_shape(layer, owner)
    if layer.per_unit:
        old, own = 0, layer.columns_per_unit
    expected = ((rows, old, *layer.kernel), (rows, own, *layer.kernel))
    found = (tuple(values["from_old"].shape), tuple(values["from_own"].shape))
    if expected != found:
        raise ValueError(f"{name} of task {owner} has shapes {found}, not {expected}")


def _lateral_head(net: FireflyNet, task: int, values: Mapping[str, Tensor]) -> LateralHead:
    classes = net.tasks[task].classes
    weights = {int(source): value for source, value in values.items() if source != "bias"}
    for source, weight in weights.items():
        expected = (classes, feature_count(net, source))
        if source >= task or tuple(weight.shape) != expected:
            raise ValueError(f"task {task} reads features of task {source} by {weight.shape}")
    return LateralHead(dict(sorted(weights.items())), values["bias"])


def _runs(units: Tensor) -> list[list[int]]:
    """Sorted numbers as [first, past the last] runs."""
    runs: list[list[int]] = []
    for unit in units.tolist():
        if runs and runs[-1][1] == unit:
            runs[-1][1] = unit + 1
        else:
            runs.append([unit, unit + 1])
    return runs


def _units(runs: list[list[int]]) -> Tensor:
    return torch.tensor([u for first, end in runs for u in range(first, end)], dtype=torch.int64)
