"""The weights of a plain model as those of task 0, and whether both then answer alike."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from firefly_cl.errors import UnsupportedOperation
from firefly_cl.network.layers import GrowableLayer, GrowableNorm
from firefly_cl.network.modes import evaluation
from firefly_cl.network.space import GIVEN, channel_count, positions
from firefly_cl.network.tracing import Traced

if TYPE_CHECKING:
    from firefly_cl.network.net import FireflyNet


def copy_weights(net: FireflyNet, traced: Traced) -> None:
    """Give task 0 of `net`, which has no rows yet, those of the traced model."""
    generator = torch.Generator()
    frozen = [
        name
        for name, module in traced.modules.items()
        if any(not parameter.requires_grad for parameter in module.parameters())
    ]
    if frozen:
        warnings.warn(
            f"{', '.join(frozen)} did not train (requires_grad=False); as units of a task they do, "
            "until the task is frozen",
            stacklevel=3,
        )
    for name, module in traced.modules.items():
        layer = net.layers[name]
        weight, bias = module.weight, module.bias
        if isinstance(layer, GrowableNorm):
            for owner in sorted({o for s in layer.writes for o in net.spaces[s.space].widths}):
                _copy_norm(net, layer, owner, module)
            continue
        assert isinstance(layer, GrowableLayer) and isinstance(weight, Tensor)
        block = layer.add_block(0, *net.block_shape(layer, 0), weight, generator)
        whole = weight.detach()
        if not layer.per_unit:
            old_at, _ = positions(layer.reads, net.read_units(0), net.tasks[0].reads)
            own_at, _ = positions(layer.reads, net.read_units(0), net.owned_units(0))
            block.from_old.data.copy_(whole[:, old_at])
            whole = whole[:, own_at]
        block.from_own.data.copy_(whole)
        if isinstance(bias, Tensor) and block.bias is not None:
            block.bias.data.copy_(bias.detach())


def _copy_norm(net: FireflyNet, norm: GrowableNorm, owner: int, module: nn.Module) -> None:
    own = net.owned_units(owner)
    mean, var = module.running_mean, module.running_var
    assert isinstance(mean, Tensor) and isinstance(var, Tensor)
    block = norm.add_block(owner, channel_count(norm.writes, own), mean)
    at, _ = positions(norm.writes, net.read_units(0), own)
    block.running_mean.copy_(mean[at])
    block.running_var.copy_(var[at])
    if block.weight is not None and block.bias is not None:
        assert isinstance(module.weight, Tensor) and isinstance(module.bias, Tensor)
        block.weight.data.copy_(module.weight.detach()[at])
        block.bias.data.copy_(module.bias.detach()[at])
    if owner == GIVEN:
        block.requires_grad_(False)


def check_same(model: nn.Module, net: FireflyNet, x: Tensor) -> None:
    """Raise UnsupportedOperation unless both answer alike, on `x` and on images drawn for it."""
    examples = [x]
    if x.is_floating_point():  # an example of zeros tells hardly any two functions apart
        examples.append(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x))
    for example in examples:
        with evaluation(model), evaluation(net), torch.no_grad():
            expected, got = model(example.clone()), net(example, 0)
        least = 1e-4 * max(1.0, float(expected.nan_to_num(0, 0, 0).abs().max()))
        if not torch.allclose(expected, got, rtol=1e-3, atol=least, equal_nan=True):
            raise UnsupportedOperation(
                f"{type(model).__name__} changed its function in conversion (by up to "
                f"{(expected - got).abs().max():.2g}); does it change a tensor in place that it "
                "reads again?"
            )
