"""A converted network computes what the model does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from growing_nets import CHANNELS, NAMES, SIDE, images, plain_model, seeded, shake
from odd_nets import Forward, Parts, pooled
from torch import Tensor, nn

from firefly_cl.errors import ConfigurationError
from firefly_cl.network import FireflyNet, extract
from firefly_cl.network.edits import split, unlock, widen

ODD: dict[str, Forward] = {
    "norm on the input": lambda m, x: m.head4(pooled(m.a(m.input_norm(x)).relu())),
    "norm on the input, joined later": lambda m, x: m.head6(
        pooled(torch.cat([m.input_norm(x), F.relu(m.a(x))], 1))
    ),
    "cat of cat": lambda m, x: m.head12(
        pooled(torch.cat([torch.cat([m.a(x), m.b(x)], dim=1), m.plain_norm(m.a2(x))], 1))
    ),
    "add of cat": lambda m, x: m.head8(
        pooled(m.norm(torch.cat([m.a(x), m.b(x)], 1) + torch.cat((m.b2(x), m.a2(x)), -3)))
    ),
    "the same branch twice in a cat": lambda m, x: (
        lambda y: m.head4(pooled(m.d(torch.cat([y, y.sigmoid()], 1))))
    )(m.a(x)),
    "channel multiplier": lambda m, x: m.head8(pooled(m.norm(m.deep(F.relu(m.a(x)))))),
    "groups that double channels": lambda m, x: m.head4(
        m.wide(F.silu(m.twice(F.gelu(m.a(x))))).amax((2, 3))
    ),
    "flatten into linear": lambda m, x: m.head5(
        F.relu(m.flat_norm(m.long(torch.flatten(m.plain_norm(m.a(x)), 1))))
    ),
    "view and reshape": lambda m, x: m.head5(m.long(m.b(x).view(x.size(0), -1)).tanh()),
    "reshape with shape": lambda m, x: m.head5(
        m.long(m.b(x).contiguous().reshape(x.shape[0], -1)).tanh()
    ),
    "dropout of all kinds": lambda m, x: m.head4(
        F.dropout(m.drop(pooled(m.drop2d(F.relu(m.a(x))))), 0.1, training=m.training)
    ),
    "functional pools": lambda m, x: m.head4(
        F.adaptive_avg_pool2d(F.max_pool2d(F.avg_pool2d(m.a(x), 2), 2, stride=1), 1).flatten(1)
    ),
    "adaptive max pool": lambda m, x: m.head6(
        F.adaptive_max_pool2d(m.c(F.leaky_relu(m.b(x), negative_slope=0.2)), 1).flatten(1)
    ),
    "in-place sums": lambda m, x: m.head4(pooled(F.relu(m.a(x).add_(m.b(x)), inplace=True))),
    "head that is not last in the model": lambda m, x: m.head5(F.elu(m.narrow(pooled(m.a(x))))),
    "head alone": lambda m, x: m.head128(x.flatten(1)),
}


def odd_model(label: str) -> Parts:
    torch.manual_seed(0)
    model = Parts(ODD[label])
    model.a2 = nn.Conv2d(CHANNELS, 4, 3, padding=1)
    model.b2 = nn.Conv2d(CHANNELS, 4, 1)
    model.head128 = nn.Linear(CHANNELS * SIDE * SIDE, 3)
    model.double()
    shake(model)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_zoo_model_and_its_network_agree_in_both_modes(name: str) -> None:
    model = plain_model(name).double()
    shake(model)
    x = images(6)
    net = FireflyNet.from_module(model.eval(), images(2))
    assert not net.training
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-9, atol=1e-10)
        model.train()
        net.train()
        torch.testing.assert_close(net(x), model(x), rtol=1e-9, atol=1e-10)
        model.eval()
        net.eval()  # running statistics moved alike
        torch.testing.assert_close(net(x), model(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("label", ODD)
def test_odd_models_convert_grow_and_extract(label: str) -> None:
    model, x = odd_model(label), images(5)
    net = FireflyNet.from_module(model, images(2))
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-10)
        for space in net.growable_spaces():
            widen(net, space, 2, generator=seeded())
            split(net, space, torch.tensor([1]))
        torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(extract(net)(x), expected, rtol=1e-9, atol=1e-10)
        net.freeze()
        net.begin_task(2, 1, generator=seeded())
        later = net(x)
        for space in net.growable_spaces():
            unlock(net, space, torch.tensor([0]))
        torch.testing.assert_close(net(x), later, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(extract(net)(x), later, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(net(x, 0), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["keys", "update", "values", "pop"])
def test_a_layer_may_be_called_what_a_dict_has(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, nn.Linear(6, 4))
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(getattr(self, name)(x).relu())
            return logits

    model, x = Named(), torch.randn(2, 6)
    net = FireflyNet.from_module(model, x)
    assert torch.equal(net(x), model(x))


def test_functions_may_name_their_input() -> None:
    model = Parts(
        lambda m, x: m.head4(torch.flatten(input=torch.mean(input=m.a(x), dim=(2, 3)), start_dim=1))
    )
    model.double().eval()
    net = FireflyNet.from_module(model, images(2)).eval()
    assert torch.equal(net(images()), model(images()))


def test_a_pass_without_gradients_leaves_later_ones_theirs() -> None:
    net = FireflyNet.from_module(
        nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), torch.zeros(2, 6)
    )
    net.freeze()
    net.begin_task(2, 2)
    x = torch.randn(2, 6, requires_grad=True)
    with torch.inference_mode():
        net(x, 1)
    net(x, 1).sum().backward()
    assert x.grad is not None and bool(x.grad.abs().sum() > 0)


def test_the_head_can_be_named_and_conversion_leaves_the_model_alone() -> None:
    model = odd_model("head that is not last in the model").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.input_norm.eval()
    net = FireflyNet.from_module(model, images(2), head="head5")
    assert net.training and model.training and not model.input_norm.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), "weights are copies"
    with pytest.raises(ConfigurationError, match="no Linear nowhere for a head"):
        FireflyNet.from_module(model, images(2), head="nowhere")


def test_an_extracted_module_converts_again() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.a(x).relu() / 0.5)
            return logits

    x = torch.randn(3, 6)
    net = FireflyNet.from_module(Scaled(), x)
    again = FireflyNet.from_module(extract(net, 0), x)
    torch.testing.assert_close(again(x), net(x))
