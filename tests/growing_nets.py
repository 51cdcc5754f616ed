"""Small growing networks of every kind, with nothing left at values that hide a mistake."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import unlock
from firefly_cl.network.execution import Execution, Streams
from firefly_cl.network.graph import Node
from firefly_cl.network.layers import Statistics
from firefly_cl.network.rebuild import Edit
from firefly_cl.network.rows import only
from firefly_cl.network.space import positions
from firefly_cl.zoo import BACKBONES
from firefly_cl.zoo.blocks import ConvNet, conv_norm_relu

NAMES = BACKBONES.names()
SIDE = 8
CHANNELS = 2
VARIED = ("mlp-bn", "resnet9", "separable", "grouped", "concat", "excited")
"""One model of each structure: dense, residual, depthwise, grouped, joined branches, products."""


def separable(
    n_classes: int,
    in_channels: int,
    image_size: int,
    constant_width: int,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """MobileNetV1 cut short: a stem and three depthwise-separable blocks, one of them strided."""
    channels = constant_width
    layers = [conv_norm_relu(in_channels, channels)]
    for stride in (1, 2, 1):
        layers.append(conv_norm_relu(channels, channels, stride=stride, groups=channels))
        layers.append(conv_norm_relu(channels, channels, kernel_size=1))
    return ConvNet(nn.Sequential(*layers), channels, n_classes, generator)


class Excitation(nn.Module):
    """Squeeze and excitation: channels times what two layers make of all their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = (nn.Conv2d(channels, channels, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.squeeze(x.mean((2, 3), keepdim=True)).relu()
        return x * self.excite(weights).sigmoid()


def excited(
    n_classes: int,
    in_channels: int,
    image_size: int,
    constant_width: int,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """MobileNetV3 cut short: a stem, a depthwise layer with excitation, a pointwise one."""
    channels = constant_width
    layers = [
        conv_norm_relu(in_channels, channels),
        conv_norm_relu(channels, channels, stride=2, groups=channels),
        Excitation(channels),
        conv_norm_relu(channels, channels, kernel_size=1),
    ]
    return ConvNet(nn.Sequential(*layers), channels, n_classes, generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 4, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(n, CHANNELS, SIDE, SIDE, generator=seeded(seed), dtype=dtype)


def plain_model(name: str, width: int = 4, classes: int = 3, seed: int = 0) -> nn.Module:
    own = {"separable": separable, "excited": excited}
    build = own[name] if name in own else BACKBONES.get(name)
    model: nn.Module = build(
        n_classes=classes,
        in_channels=CHANNELS,
        image_size=SIDE,
        constant_width=width,
        generator=seeded(seed),
    )
    return model


@torch.no_grad()
def shake(module: nn.Module, seed: int = 2) -> None:
    """Move norm statistics, affine parameters and biases of whatever still trains off 0 and 1."""
    generator = seeded(seed)

    def noise(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator).to(value) * 0.2

    for parameter in module.parameters():
        if parameter.requires_grad and parameter.dim() == 1:
            parameter += noise(parameter)
    frozen = set()
    if isinstance(module, FireflyNet):
        frozen = {str(t) for t, task in enumerate(module.tasks) if task.frozen} | {"-1"}
    for name, buffer in module.named_buffers():
        if len(parts := name.split(".")) > 2 and parts[-2] in frozen and "blocks" in parts:
            continue
        if name.endswith("running_mean"):
            buffer += noise(buffer)
        elif name.endswith("running_var"):
            buffer *= 1 + noise(buffer).abs()
    if isinstance(module, FireflyNet):
        module.forget_plans()


def net_of(
    name: str, width: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0
) -> FireflyNet:
    """One open task of 3 classes."""
    model = plain_model(name, width, seed=seed).to(dtype)
    shake(model, seed + 2)
    return FireflyNet.from_module(model.eval(), images(2, dtype))


def begin(
    net: FireflyNet,
    classes: int = 4,
    widths: int | Mapping[str, int] = 2,
    reads: Mapping[str, Tensor] | None = None,
    seed: int = 5,
) -> int:
    """Freeze the newest task and begin another, its norms and biases shaken."""
    if not net.tasks[-1].frozen:
        net.freeze()
    task = net.begin_task(classes, widths, reads, seeded(seed))
    shake(net, seed + 1)
    return task


def two_tasks(name: str, width: int = 4, dtype: torch.dtype = torch.float64) -> FireflyNet:
    net = net_of(name, width, dtype)
    begin(net)
    return net


def some(n: int, share: float, generator: torch.Generator, least: int = 0) -> Tensor:
    """Sorted numbers of a random part of n units."""
    count = max(round(share * n), min(least, n))
    return torch.randperm(n, generator=generator)[:count].sort().values


def part_reads(net: FireflyNet, share: float, generator: torch.Generator) -> dict[str, Tensor]:
    """A random part of every space's units, for the next task to read."""
    task = len(net.tasks)
    return {
        name: some(net.spaces[name].before(task), share, generator)
        for name in net.growable_spaces()
    }


@torch.no_grad()
def answers(net: FireflyNet, x: Tensor, training: bool = False) -> list[Tensor]:
    """Logits of every task; training: in train mode. The network is left as it was."""
    mode, buffers = net.training, {k: v.clone() for k, v in net.named_buffers()} if training else {}
    net.train(training)
    found = [net(x, task) for task in range(len(net.tasks))]
    for key, value in net.named_buffers():
        if training:
            value.copy_(buffers[key])
    net.train(mode)
    return found


@torch.no_grad()
def unlock_on(net: FireflyNet, x: Tensor, space: str, units: Tensor) -> Edit:
    """Unlock with the statistics that older units have in `x`, as training normalises by them."""
    units = units.sort().values
    found: dict[str, Statistics] = {}

    class Measuring(Execution):
        def norm(self, node: Node, value: Streams) -> Streams:
            if any(s.space == space for s in node.layout):
                active = self.net.tasks[-1].active
                sorted_units = units.sort().values
                at, _ = positions(node.layout, active, only(self.net, space, sorted_units))
                channels = value["old"][:, at]
                var, mean = torch.var_mean(
                    channels, [0, *range(2, x.dim())][: channels.dim() - 1], correction=0
                )
                found[node.name] = Statistics(mean, var, None, None)
            return super().norm(node, value)

    Measuring(net, net.current).run(x)
    return unlock(net, space, units, norms=found)


def snapshot(net: FireflyNet) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def assert_same_state(net: FireflyNet, before: Mapping[str, Tensor]) -> None:
    after = net.state_dict()
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value), key


def close(one: list[Tensor], other: list[Tensor]) -> bool:
    double = one[0].dtype == torch.float64
    rtol, atol = (1e-9, 1e-10) if double else (1e-5, 1e-5)
    return all(torch.allclose(a, b, rtol, atol) for a, b in zip(one, other, strict=True))


def train_steps(
    net: FireflyNet,
    x: Tensor,
    y: Tensor,
    steps: int = 3,
    optimizer: torch.optim.Optimizer | None = None,
) -> torch.optim.Optimizer:
    """A few steps on the newest task; returns the optimizer."""
    optimizer = optimizer or torch.optim.SGD(
        net.trainable(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval()
    return optimizer
