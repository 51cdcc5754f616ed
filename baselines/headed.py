"""A shared trunk with one linear head per task: the network of the baselines, and its files."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from firefly_cl.continual.answer import answer
from firefly_cl.continual.learner import SCHEMA, Logits
from firefly_cl.continual.views import Views
from firefly_cl.errors import ConfigurationError, FileError, Unreadable
from firefly_cl.zoo import BACKBONES


@dataclass(frozen=True)
class Blueprint:
    """What it takes to build the trunk again, and how pixels become its inputs.

    mirrored, shifted: those of the views that an answer is the mean of.
    """

    backbone: str
    width: float
    constant_width: int | None
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirrored: bool = False
    shifted: int = 0

    @property
    def views(self) -> Views:
        """The views of an image that an answer is the mean of."""
        return Views(self.mirrored, self.shifted)

    def build(self, seed: int, kind: type[HeadedNet] | None = None) -> HeadedNet:
        """A trunk with weights drawn by `seed`, without heads; a HeadedNet if no other `kind`."""
        channels, height, _ = self.image_shape
        model = BACKBONES.get(self.backbone)(
            n_classes=2,
            in_channels=channels,
            image_size=height,
            width=self.width,
            constant_width=self.constant_width,
            generator=torch.Generator().manual_seed(seed),
        )
        return (kind or HeadedNet)(model)


class HeadedNet(nn.Module):
    """`model` without its last Linear, and heads for the tasks seen in its place.

    A task whose batch-norm statistics have been kept is evaluated with them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        found = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
        if not found or "." in found[-1]:
            raise ConfigurationError(
                f"{type(model).__name__} does not end in a Linear of its own: give it one as head"
            )
        self.features = cast(nn.Linear, model.get_submodule(found[-1])).in_features
        setattr(model, found[-1], nn.Identity())
        self.trunk = model
        self.heads = nn.ModuleDict()
        self.statistics = nn.ModuleDict()

    def add_head(self, task: int, n_classes: int, generator: torch.Generator | None = None) -> None:
        """A head for `task`, drawn uniformly in +-1/sqrt(features)."""
        head = nn.Linear(self.features, n_classes)
        bound = 1 / math.sqrt(self.features)
        nn.init.uniform_(head.weight, -bound, bound, generator=generator)
        nn.init.zeros_(head.bias)
        device = next((values.device for values in self.trunk.parameters()), None)
        self.heads[str(task)] = head.to(device)

    def keep_statistics(self, task: int) -> None:
        """Remember the running statistics of every batch norm as those of `task`."""
        kept = nn.Module()
        for name, values in self._running():
            kept.register_buffer(name.replace(".", "_"), values.detach().clone())
        self.statistics[str(task)] = kept

    def forward(self, x: Tensor, task: int) -> Tensor:
        """Logits (B, classes of the task) of normalised images."""
        if self.training or str(task) not in self.statistics:
            logits: Tensor = self.heads[str(task)](self.trunk(x))
            return logits
        own = self.own_values(task)
        logits = self.heads[str(task)](torch.func.functional_call(self.trunk, own, (x,)))
        return logits

    def every_head(self, x: Tensor) -> list[Tensor]:
        """Logits (B, classes) of every task, by its head alone: all see the same features."""
        features = self.trunk(x)
        return [head(features) for head in self.heads.values()]

    def own_values(self, task: int) -> dict[str, Tensor]:
        """What `task` has of its own in the trunk, by name."""
        kept = dict(self.statistics[str(task)].named_buffers())
        return {name: kept[name.replace(".", "_")] for name, _ in self._running()}

    def _running(self) -> Iterator[tuple[str, Tensor]]:
        for name, values in self.trunk.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                yield name, values


def answer_task(net: HeadedNet, blueprint: Blueprint, task: int, images: Tensor) -> Tensor:
    """Logits (n, classes) in float32 on the CPU for images (n, C, H, W); the same on every call."""
    if str(task) not in net.heads:
        seen = ", ".join(net.heads) or "none"
        raise ConfigurationError(f"task {task} has not been trained; trained so far: {seen}")
    return answer(
        net,
        lambda x: net(x, task),
        images,
        image_shape=blueprint.image_shape,
        mean=blueprint.mean,
        std=blueprint.std,
        views=blueprint.views,
    )


def answer_all(net: HeadedNet, blueprint: Blueprint, images: Tensor) -> list[Tensor]:
    """As `answer_task` for every task, by `every_head`."""
    logits = answer(
        net,
        lambda x: torch.cat(net.every_head(x), dim=1),
        images,
        image_shape=blueprint.image_shape,
        mean=blueprint.mean,
        std=blueprint.std,
        views=blueprint.views,
    )
    heads = (cast(nn.Linear, head) for head in net.heads.values())
    return list(torch.split(logits, [head.out_features for head in heads], dim=1))


def count_floats(net: nn.Module) -> int:
    """Weights, biases and running statistics."""
    buffers = (values for values in net.buffers() if values.is_floating_point())
    return sum(values.numel() for values in (*net.parameters(), *buffers))


@torch.no_grad()
def count_flops(net: HeadedNet, blueprint: Blueprint, task: int) -> int:
    """Operations of one image through trunk and head, a multiply-add counted as 2."""
    training = net.training
    net.eval()
    image = torch.zeros(1, *blueprint.image_shape, device=next(net.parameters()).device)
    try:
        with FlopCounterMode(display=False) as counter:
            net(image, task)
    finally:
        net.train(training)
    return int(counter.get_total_flops()) * len(blueprint.views)


def layer_units(net: HeadedNet) -> dict[str, int]:
    """Output units of every convolution and linear layer of the trunk."""
    return {
        name: part.weight.shape[0]
        for name, part in net.trunk.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    }


def save_nets(
    folder: Path,
    kind: str,
    blueprint: Blueprint,
    nets: Sequence[HeadedNet],
    memory: Mapping[str, Tensor] | None = None,
) -> None:
    """Write model.json and the files it names, each whole or not at all.

    `memory`: what a strategy keeps beside the networks. Tensors are written first, under names
    made from their content, so that an interruption leaves what was there intact. Raises
    FileError.
    """
    weights = {
        f"{i}.{name}": values.detach().cpu().contiguous()
        for i, net in enumerate(nets)
        for name, values in net.state_dict().items()
    }
    contents = {"model": tensor_bytes(weights)}
    if memory:
        contents["memory"] = tensor_bytes(
            {name: values.detach().cpu().contiguous() for name, values in memory.items()}
        )
    digests = {part: hashlib.sha256(content).hexdigest() for part, content in contents.items()}
    names = {part: f"{part}-{digest[:12]}.safetensors" for part, digest in digests.items()}
    parts = [
        {
            "heads": {task: head.out_features for task, head in net.heads.items()},
            "statistics": list(net.statistics),
        }
        for net in nets
    ]
    structure = {
        "schema": SCHEMA,
        "kind": kind,
        "weights": names["model"],
        "sha256": digests["model"],
        "blueprint": asdict(blueprint),
        "nets": parts,
    }
    if memory:
        structure["memory"] = {"file": names["memory"], "sha256": digests["memory"]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, content in contents.items():
            _write(folder / names[part], content)
        _write(folder / "model.json", (json.dumps(structure, indent=1) + "\n").encode())
        for older in (*folder.glob("model-*.safetensors"), *folder.glob("memory-*.safetensors")):
            if older.name not in names.values():
                older.unlink()
    except OSError as error:
        raise FileError(
            f"cannot write the model to {folder}: {error.strerror or error}; "
            "choose a folder that can be written"
        ) from error


def load(folder: Path, kind: type[HeadedNet] = HeadedNet) -> Logits:
    """The saved networks as a function (task, uint8 images) -> logits.

    Raises FileError where files are missing, damaged, or of a newer schema.
    """
    blueprint, nets = load_nets(folder, kind)
    owner = {int(task): net for net in nets for task in net.heads}

    def logits(task: int, images: Tensor) -> Tensor:
        return answer_task(owner.get(task, nets[0]), blueprint, task, images)

    return logits


def load_nets(folder: Path, kind: type[HeadedNet] = HeadedNet) -> tuple[Blueprint, list[HeadedNet]]:
    """The networks of a folder, in evaluation mode; raises FileError."""
    path = folder / "model.json"
    structure = _read_structure(path)
    content = _read_whole(folder, structure.get("weights"), structure.get("sha256"))
    try:
        weights = read_tensors(content)
        told = structure["blueprint"]
        for name in ("image_shape", "mean", "std"):
            told[name] = tuple(told[name])
        blueprint = Blueprint(**told)
        nets = []
        for i, part in enumerate(structure["nets"]):
            net = blueprint.build(0, kind)
            for task, n_classes in part["heads"].items():
                net.add_head(int(task), int(n_classes))
            for task in part["statistics"]:
                net.keep_statistics(int(task))
            prefix = f"{i}."
            own = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
            net.load_state_dict(own, strict=True)
            nets.append(net.eval())
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError):
        raise FileError(f"{path} and its weights do not fit together: restore the folder") from None
    return blueprint, nets


def load_memory(folder: Path) -> dict[str, Tensor]:
    """What a strategy kept beside the networks of a folder; raises FileError."""
    told = _read_structure(folder / "model.json").get("memory")
    if told is None:
        return {}
    content = _read_whole(folder, told.get("file"), told.get("sha256"))
    return dict(read_tensors(content))


def _read_whole(folder: Path, name: object, digest: object) -> bytes:
    """A file that model.json names; raises FileError if it is missing or not that."""
    path = folder / str(name)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileError(f"{path}, which model.json names, is missing: restore the folder") from None
    except OSError as error:
        raise Unreadable.of(path, error) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise FileError(f"{path} is damaged (its checksum differs): restore it from a copy")
    return content


def _read_structure(path: Path) -> dict[str, Any]:
    try:
        structure = json.loads(path.read_text(encoding="utf-8"))
        schema = int(structure["schema"])
    except FileNotFoundError:
        raise FileError(f"no model in {path.parent}: model.json is missing") from None
    except OSError as error:
        raise Unreadable.of(path, error) from error
    except (ValueError, KeyError, TypeError):
        raise FileError(f"{path} is damaged: restore the run folder or train again") from None
    if schema > SCHEMA:
        raise FileError(
            f"{path} has schema {schema}, this version reads up to {SCHEMA}: update firefly_cl"
        )
    return dict(structure)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
