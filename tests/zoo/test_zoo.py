"""Every registered backbone: traceable, right shapes, right widths, seeded, able to learn."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from firefly_cl.errors import ConfigurationError, UnknownName
from firefly_cl.network import FireflyNet, floats, flops
from firefly_cl.zoo import BACKBONES

NAMES = BACKBONES.names()

torch.set_num_threads(1)


def build(name: str, seed: int = 0, **sizes) -> nn.Module:
    return BACKBONES.get(name)(generator=torch.Generator().manual_seed(seed), **sizes)


def layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def test_the_promised_families_are_registered():
    promised = {"mlp", "vgg11", "vgg16", "vgg19", "resnet9", "resnet18", "mobilenetv1", "concat"}
    assert promised <= set(NAMES)


def test_listing_does_not_import_torch():
    code = (
        "import sys; from firefly_cl.zoo import BACKBONES; "
        "[BACKBONES.describe(n) for n in BACKBONES.names()]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'resnet18'"):
        BACKBONES.get("resnet-18")


@pytest.mark.parametrize("name", NAMES)
def test_description_is_one_sentence(name):
    assert BACKBONES.describe(name).endswith(".")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_channels, image_size", [(1, 8), (3, 16), (1, 28), (3, 32), (3, 64)])
def test_logits_have_one_column_per_class(name, in_channels, image_size):
    model = build(
        name, n_classes=7, in_channels=in_channels, image_size=image_size, constant_width=4
    )
    logits = model(torch.randn(2, in_channels, image_size, image_size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("mlp")])
def test_map_before_the_head_keeps_two_pixels_a_side(name):
    model = build(name, in_channels=1, image_size=8, constant_width=4).eval()
    assert min(model.features(torch.randn(1, 1, 8, 8)).shape[2:]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_symbolic_trace_computes_the_same_function(name):
    model = build(name, in_channels=1, image_size=8, constant_width=4).eval()
    traced = torch.fx.symbolic_trace(model)
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(traced(images), model(images))
    assert {node.op for node in traced.graph.nodes} <= {
        "placeholder",
        "call_module",
        "call_function",
        "call_method",
        "output",
    }


@pytest.mark.parametrize("name", NAMES)
def test_constant_width_is_the_width_of_every_layer_but_the_head(name):
    *body, head = layers(build(name, n_classes=3, constant_width=12))
    assert {layer.weight.shape[0] for layer in body} == {12}
    assert isinstance(head, nn.Linear) and head.out_features == 3


@pytest.mark.parametrize("name", NAMES)
def test_width_scales_every_layer(name):
    whole = [layer.weight.shape[0] for layer in layers(build(name))[:-1]]
    half = [layer.weight.shape[0] for layer in layers(build(name, width=0.5))[:-1]]
    assert half == [round(units / 2) for units in whole]
    assert {layer.weight.shape[0] for layer in layers(build(name, width=1e-6))[:-1]} == {4}


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_before_a_norm_has_no_bias_and_no_relu_is_in_place(name):
    model = build(name, constant_width=4)
    normed = any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in model.modules())
    assert all((layer.bias is None) == normed for layer in layers(model)[:-1])
    assert not any(m.inplace for m in model.modules() if isinstance(m, nn.ReLU))


@pytest.mark.parametrize(
    "name, depth",
    [
        ("mlp", 3),
        ("vgg11", 9),
        ("vgg16", 14),
        ("vgg19", 17),
        ("resnet9", 9),
        ("pyramid9", 9),
        ("mobilenetv1", 28),
        ("alexnet", 6),
        ("alexnet-bn", 6),
    ],
)
def test_depth_in_layers(name, depth):
    assert len(layers(build(name, constant_width=4))) == depth


def test_pyramid9_is_a_resnet9_with_less_than_half_the_weights_for_as_many_operations():
    sizes = {}
    for name, width in (("resnet9", 0.25), ("pyramid9", 0.375)):
        model = build(name, width=width)
        net = FireflyNet.from_module(model, torch.zeros(2, 3, 32, 32))
        sizes[name] = floats(net), flops(net)
        steps = [b.out_channels - a.out_channels for a, b in pairwise(layers(model)[:-1])]
        if name == "pyramid9":
            assert [step for step in steps if step] == [16, 16, 16]
    assert sizes["pyramid9"][0] < 0.5 * sizes["resnet9"][0]
    assert sizes["pyramid9"][1] < 1.1 * sizes["resnet9"][1]


def test_resnet18_has_18_layers_besides_the_three_projections():
    model = build("resnet18", width=0.125)
    projections = [m for m in layers(model) if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(projections) == 3
    assert len(layers(model)) - len(projections) == 18


@pytest.mark.parametrize(
    "name, parameters",
    # vgg16: torchvision's vgg16_bn().features without the 4,224 biases that its norms make idle,
    # and a head of 512x10 + 10; resnet18: torchvision's with 10 classes, its 7x7 stem made 3x3;
    # alexnet: 4x4, 3x3 and 2x2 kernels, a map of 2x2 pixels, biases everywhere; alexnet-bn: norms
    # of two numbers a unit in their place.
    [
        ("vgg16", 14_723_136 - 4_224 + 5_130),
        ("resnet18", 11_181_642 - 3 * 64 * (49 - 9)),
        (
            "alexnet",
            (3 * 64 * 16 + 64 * 128 * 9 + 128 * 256 * 4 + 64 + 128 + 256)
            + (256 * 4 * 2048 + 2048 * 2048 + 2 * 2048)
            + (2048 * 10 + 10),
        ),
        (
            "alexnet-bn",
            (3 * 64 * 16 + 64 * 128 * 9 + 128 * 256 * 4)
            + (256 * 4 * 2048 + 2048 * 2048)
            + 2 * (64 + 128 + 256 + 2 * 2048)
            + (2048 * 10 + 10),
        ),
    ],
)
def test_published_sizes(name, parameters):
    assert sum(p.numel() for p in build(name).parameters()) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_one_training_step_lowers_the_loss(name):
    # In double precision, so that a step short enough to be first-order is above rounding.
    model = build(name, n_classes=4, in_channels=1, image_size=8, constant_width=8).double()
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    labels = torch.arange(16) % 4
    before = F.cross_entropy(model(images), labels)
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=1e-5).step()
    assert F.cross_entropy(model(images), labels) < before


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_decides_every_weight(name):
    sizes = {"in_channels": 1, "image_size": 8, "constant_width": 4}
    torch.manual_seed(0)
    first = build(name, seed=3, **sizes).state_dict()
    torch.manual_seed(1)
    again, other = build(name, seed=3, **sizes).state_dict(), build(name, seed=4, **sizes)
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = zip(layers(build(name, seed=3, **sizes)), layers(other), strict=True)
    assert not any(torch.equal(a.weight, b.weight) for a, b in drawn)


@pytest.mark.parametrize("constant_width, groups", [(12, 4), (6, 2), (5, 1)])
def test_grouped_has_groups_that_divide_its_channels(constant_width, groups):
    model = build("grouped", constant_width=constant_width)
    assert max(m.groups for m in model.modules() if isinstance(m, nn.Conv2d)) == groups


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"n_classes": 0}, "n_classes is 0"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"image_size": -1}, "image_size is -1"),
        ({"width": 0.0}, "width is 0.0"),
        ({"width": float("nan")}, "width is nan"),
        ({"constant_width": 0}, "constant_width is 0"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_cannot_work_are_refused(name, sizes, message):
    with pytest.raises(ConfigurationError, match=message):
        build(name, **sizes)
