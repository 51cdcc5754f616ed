"""Batch norm of few channels: what torch's own gives in float64, whatever the layout."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from growing_nets import CHANNELS, SIDE, net_of, train_steps
from torch import Tensor

from firefly_cl.network import batch_norm as module
from firefly_cl.network.batch_norm import batch_norm

SHAPES = [(4, 1, 6, 6), (2, 3, 5, 7), (8, 9, 4, 4), (16, 13, 8, 8), (3, 31, 1, 1), (2, 4, 32, 32)]


@pytest.fixture(autouse=True)
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The channels that our own batch norm was given."""
    channels: list[int] = []
    apply = module._BatchNorm.apply

    def noted(x: Tensor, *rest: object) -> object:
        channels.append(x.shape[1])
        return apply(x, *rest)

    monkeypatch.setattr(module._BatchNorm, "apply", noted)
    return channels


def images(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Channels with means far from 0."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    x = x * 2 + torch.arange(shape[1], dtype=torch.float64).view(1, -1, *[1] * (len(shape) - 2))
    return (
        x.to(dtype).contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.to(dtype)
    )


def affine(channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Running mean and variance, weight and bias."""
    steps = torch.linspace(0.5, 1.5, channels)
    return steps.clone(), 2 * steps, steps.flip(0).contiguous(), -steps


def results(x: Tensor, dtype: torch.dtype, own: bool) -> list[Tensor]:
    """The answer, the gradients of images, weight and bias, and the running statistics."""
    x = x.to(dtype).detach().requires_grad_()
    mean, var, weight, bias = (part.to(dtype) for part in affine(x.shape[1]))
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    if own:
        out = batch_norm(x, mean, var, weight, bias, 0.1, 1e-5)
    else:
        out = F.batch_norm(x, mean, var, weight, bias, True, 0.1, 1e-5)
    direction = torch.sin(torch.arange(out.numel(), dtype=dtype)).view(out.shape)
    gradients = torch.autograd.grad((out * direction).sum(), (x, weight, bias))
    return [out.detach(), *gradients, mean, var]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_batch_norm(shape: tuple[int, ...], taken: list[int]) -> None:
    x = images(shape)
    found, expected = results(x, torch.float32, True), results(x, torch.float64, False)
    assert taken == [shape[1]]
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), reference, rtol=2e-5, atol=2e-5)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[1].is_contiguous(memory_format=torch.channels_last)


def test_a_gradient_in_another_layout_is_read_aright() -> None:
    x = images((4, 5, 6, 6)).requires_grad_()
    mean, var, weight, bias = affine(5)
    out = batch_norm(x, mean, var, weight, bias, 0.1, 1e-5)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (plain,) = torch.autograd.grad(out, x, direction.contiguous(), retain_graph=True)
    last = direction.contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, torch.autograd.grad(out, x, last)[0])


@pytest.mark.parametrize(
    ("x", "capability"),
    [
        (images((4, 8, 6, 6)), "AVX2"),  # fills its vectors
        (images((4, 9, 6, 6)), "NEON"),  # vectors of unknown length
        (images((4, 33, 6, 6)), "AVX2"),
        (images((4, 9, 6, 6)).contiguous(), "AVX2"),
        (images((4, 9, 6, 6), torch.float64), "AVX2"),
        (images((4, 9)), "AVX2"),
    ],
    ids=["full", "unknown", "many", "plain", "double", "flat"],
)
def test_elsewhere_it_is_torchs_own_to_the_bit(
    x: Tensor, capability: str, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    pairs = zip(results(x, x.dtype, True), results(x, x.dtype, False), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert not taken


def test_vectors_of_sixteen_leave_a_remainder_of_eight(
    taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    results(images((4, 8, 6, 6)), torch.float32, True)
    results(images((4, 16, 6, 6)), torch.float32, True)
    assert taken == [8]


def test_it_keeps_out_of_autocast_and_of_norms_without_an_affine_map(taken: list[int]) -> None:
    x, (mean, var, weight, bias) = images((4, 5, 6, 6)), affine(5)
    with torch.autocast("cpu", torch.bfloat16):
        batch_norm(x, mean, var, weight, bias, 0.1, 1e-5)
    batch_norm(x, mean, var, None, None, 0.1, 1e-5)
    assert not taken


def test_one_value_is_an_error_as_elsewhere() -> None:
    with pytest.raises(ValueError, match="more than 1 value"):
        batch_norm(images((1, 5, 1, 1)), *affine(5), 0.1, 1e-5)


def test_a_second_derivative_is_refused() -> None:
    x = images((4, 5, 6, 6)).requires_grad_()
    mean, var, weight, bias = affine(5)
    out = batch_norm(x, mean, var, weight, bias, 0.1, 1e-5)
    (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_thin_networks_train_by_it(taken: list[int]) -> None:
    net = net_of("resnet9", dtype=torch.float32).to(memory_format=torch.channels_last)
    widths = {width[0] for width in net.widths().values()}
    train_steps(net, images((6, CHANNELS, SIDE, SIDE)), torch.arange(6) % 3, steps=1)
    assert taken and set(taken) == {width for width in widths if width % 8 and width < 32}
