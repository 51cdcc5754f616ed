"""A converted network computes what the model does; what cannot grow is named, with its line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from growing_nets import CHANNELS, NAMES, SIDE, images, plain_model, seeded, shake
from torch import Tensor, nn

from firefly_cl.errors import ConfigurationError, FileError, UnsupportedOperation
from firefly_cl.network import (
    FireflyNet,
    extract,
    load_net,
    map_call,
    map_module,
    register_map,
    register_rule,
    save_net,
)
from firefly_cl.network.edits import split, unlock, widen
from firefly_cl.network.graph import MAPS
from firefly_cl.network.trace import CALL_RULES, MODULE_RULES

Forward = Callable[["Parts", Tensor], Tensor]


class Parts(nn.Module):
    """Layers to write odd models of, and the forward that uses them."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(CHANNELS)
        self.a = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.b = nn.Conv2d(CHANNELS, 4, 1)
        self.c = nn.Conv2d(4, 6, 3, padding="same", bias=False)
        self.d = nn.Conv2d(8, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=True)
        self.deep = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.wide = nn.Conv2d(8, 4, 3, padding=2, dilation=2, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.plain_norm = nn.BatchNorm2d(4, affine=False)
        self.drop, self.drop2d = nn.Dropout(0.3), nn.Dropout2d(0.2)
        self.narrow = nn.Linear(4, 5)
        self.long = nn.Linear(4 * SIDE * SIDE, 5)
        self.flat_norm = nn.BatchNorm1d(5)
        self.head4, self.head5 = nn.Linear(4, 3), nn.Linear(5, 3)
        self.head6, self.head8 = nn.Linear(6, 3), nn.Linear(8, 3)
        self.head12 = nn.Linear(12, 3)
        self.up = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.layer_norm = nn.LayerNorm(SIDE)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


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


def test_a_torchvision_model_converts() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4, weights=None).double()
    shake(model)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    net = FireflyNet.from_module(model.eval(), x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-8, atol=1e-9)
        unit = torch.tensor([0])
        split(net, "conv1", unit)
        torch.testing.assert_close(net(x), model(x), rtol=1e-8, atol=1e-9)


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


UNSUPPORTED: dict[str, tuple[Forward, str]] = {
    "product with one channel": (
        lambda m, x: m.head4(pooled(m.a(x) * m.b(x).mean(1, keepdim=True))),
        "mean",
    ),
    "gating": (lambda m, x: m.head4(pooled(m.a(x) * m.b(x).softmax(1))), "softmax"),
    "softmax": (lambda m, x: m.head4(F.softmax(pooled(m.a(x)), 1)), "softmax"),
    "difference": (lambda m, x: m.head4(pooled(m.a(x) - m.b(x))), "sub"),
    "transposed convolution": (lambda m, x: m.head4(pooled(m.up(m.a(x)))), "up"),
    "layer norm": (lambda m, x: m.head4(pooled(m.layer_norm(m.a(x)))), "layer_norm"),
    "weight reuse": (lambda m, x: m.head4(pooled(m.a(x) + m.a(x.relu()))), "called twice"),
    "own parameter": (lambda m, x: m.head4(pooled(m.a(x) + m.scale)), "scale"),
    "reciprocal": (lambda m, x: m.head4(pooled(1 / m.a(x))), "truediv"),
    "broadcast": (
        lambda m, x: m.head4(pooled(m.a(x) + m.b(x).mean((2, 3), keepdim=True))),
        "broadcast",
    ),
    "cat of rows": (lambda m, x: m.head4(pooled(torch.cat([m.a(x), m.b(x)], 2))), "cat"),
    "partial mean": (lambda m, x: m.head8(m.a(x).mean((1, 2))), "mean"),
    "odd reshape": (lambda m, x: m.head4(m.a(x).reshape(-1, 4)), "not a flatten"),
    "slice": (lambda m, x: m.head4(pooled(m.a(x)[:, :4])), "getitem"),
    "transpose": (lambda m, x: m.head4(pooled(m.a(x).transpose(2, 3))), "transpose"),
    "two results": (lambda m, x: (m.head4(pooled(m.a(x))), x), "one tensor"),  # type: ignore[dict-item,return-value]
    "no head at the end": (lambda m, x: (m.head4(pooled(m.a(x))), m.b(x))[1], "head"),
    "sum of two heads": (
        lambda m, x: m.head4(pooled(m.a(x))) + m.head8(pooled(m.deep(m.b(x)))),
        "sum",
    ),
    "norm behind the head": (lambda m, x: m.norm3(m.head4(pooled(m.a(x)))), "behind the head"),
    "tied to the input": (lambda m, x: m.head2(pooled(x + m.two(x))), "cannot grow"),
    "order turned round": (
        lambda m, x: (lambda p, q: m.head8(pooled(torch.cat([p, q], 1) + torch.cat([q, p], 1))))(
            m.a(x), m.b(x)
        ),
        "",
    ),
}


@pytest.mark.parametrize("label", [k for k in UNSUPPORTED if k != "order turned round"])
def test_what_cannot_grow_is_named_with_its_line(label: str) -> None:
    forward, named = UNSUPPORTED[label]
    model = Parts(forward)
    model.two, model.norm3 = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm1d(3)
    model.head2 = nn.Linear(CHANNELS, 3)
    with pytest.raises(UnsupportedOperation) as caught:
        FireflyNet.from_module(model.double().eval(), images(2))
    message = str(caught.value)
    assert named in message and "\n" not in message
    first = inspect.getsourcelines(forward)[1]
    if label in ("two results", "no head at the end"):
        return  # torch.fx keeps no line of a return
    where = f"{Path(__file__).name}:"
    assert where in message, message
    line = int(message.split(where)[1].split(":")[0].split(" ")[0])
    assert first <= line <= first + 6


SELF_JOINED: dict[str, Forward] = {
    "as it is": lambda m, y: m.head2(pooled(torch.cat([y, y.sigmoid()], 1))),
    "behind a norm and a depthwise layer": lambda m, y: m.head2(
        pooled(m.each(F.relu(m.norm2(torch.cat([y, y], 1)))))
    ),
    "flattened, joined with itself again": lambda m, y: (
        lambda z: m.head256(torch.cat([z, torch.tanh(z)], 1).flatten(1))
    )(torch.cat([y, y], 1)),
    "in a sum": lambda m, y: m.head2(
        pooled(F.silu(torch.cat([y, y], 1) + torch.cat([y.tanh(), y], 1)))
    ),
    "flattened first": lambda m, y: (lambda z: m.head128(torch.cat([z, z.exp()], 1)))(y.flatten(1)),
    "in a sum with a layer of two units": lambda m, y: m.head2(
        pooled(m.each(torch.cat([y, y], 1)) + m.both(y))
    ),
}


def self_joined(label: str) -> nn.Module:
    """A layer of one unit, whose output is joined with itself."""
    torch.manual_seed(0)
    model = Parts(lambda m, x: SELF_JOINED[label](m, m.one(x)))
    model.one, model.both = nn.Conv2d(CHANNELS, 1, 3, padding=1), nn.Conv2d(1, 2, 1)
    model.norm2, model.each = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1, groups=2)
    model.head2, model.head128 = nn.Linear(2, 3), nn.Linear(2 * SIDE * SIDE, 3)
    model.head256 = nn.Linear(4 * SIDE * SIDE, 3)
    model.double()
    shake(model)
    return model.eval()


@pytest.mark.parametrize("label", [k for k in SELF_JOINED if "two units" not in k])
@torch.no_grad()
def test_one_unit_joined_with_itself_grows_place_by_place(label: str) -> None:
    model, x = self_joined(label), images(5)
    net = FireflyNet.from_module(model, images(2))
    expected = model(x)
    widen(net, "one", 2, generator=seeded())
    split(net, "one", torch.tensor([0]))
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(extract(net)(x), expected, rtol=1e-9, atol=1e-10)


def test_one_unit_joined_with_itself_and_added_to_two_channels_of_a_layer_is_refused() -> None:
    """New units would come behind both channels in the join, between them in the layer."""
    model = self_joined("in a sum with a layer of two units")
    with pytest.raises(UnsupportedOperation, match=r"^add at .*order of its channels"):
        FireflyNet.from_module(model, images(2))


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ((4, 4, 4), (4, 8, 2), "first"),
        ((4, 8, 4), (8, 8, 8), "second"),
        ((4, 8, 4), (8, 4, 2), "first"),
    ],
    ids=["depthwise, then grouped", "doubled, then depthwise", "of 4 groups, then of 2"],
)
def test_a_unit_of_several_groups_of_a_layer_is_refused(
    first: tuple[int, int, int], second: tuple[int, int, int], refused: str
) -> None:
    """(channels read, written, groups) of two layers."""

    def grouped(m: Parts, x: Tensor) -> Tensor:
        logits: Tensor = m.last(pooled(m.second(F.relu(m.first(m.a(x))))))
        return logits

    model = Parts(grouped)
    model.first = nn.Conv2d(*first[:2], 3, padding=1, groups=first[2])
    model.second = nn.Conv2d(*second[:2], 3, padding=1, groups=second[2])
    model.last = nn.Linear(second[1], 3)
    says = f"^{refused} at .*groups reads . channels of a unit that has"
    with pytest.raises(UnsupportedOperation, match=says):
        FireflyNet.from_module(model.double().eval(), images(2))


def test_branches_swapped_before_a_sum_share_their_units_or_are_refused() -> None:
    forward, _ = UNSUPPORTED["order turned round"]
    model, x = Parts(forward).double().eval(), images(5)
    net = FireflyNet.from_module(model, images(2))
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-9, atol=1e-10)
        expected = net(x)
        for space in net.growable_spaces():
            split(net, space, torch.tensor([1]))
            widen(net, space, 1, generator=seeded())
        torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("place", ["behind a norm", "at the input"])
def test_a_tensor_changed_in_place_and_read_again_is_an_error(place: str) -> None:
    """Whatever the example: of zeros, all these answer alike."""

    def overwriting(m: Parts, x: Tensor) -> Tensor:
        y = m.plain_norm(m.bare(x)) if place == "behind a norm" else x
        logits: Tensor = m.last(pooled(torch.cat([F.relu(y, inplace=True), y], 1)))
        return logits

    model = Parts(overwriting)
    model.bare = nn.Conv2d(CHANNELS, 4, 3, padding=1, bias=False)
    model.last = nn.Linear(8 if place == "behind a norm" else 2 * CHANNELS, 3)
    state = torch.get_rng_state()
    for example in (torch.zeros(2, CHANNELS, SIDE, SIDE), images(2, torch.float32)):
        with pytest.raises(UnsupportedOperation, match="in place"):
            FireflyNet.from_module(model.eval(), example)
    assert torch.equal(torch.get_rng_state(), state)


def test_control_flow_on_values_and_wrong_examples_are_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def branching(m: Parts, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        logits: Tensor = m.head4(pooled(m.a(x)))
        return logits

    with pytest.raises(UnsupportedOperation, match="must not branch"):
        FireflyNet.from_module(Parts(branching), images(2))
    with pytest.raises(UnsupportedOperation, match="nor take their len"):
        FireflyNet.from_module(Parts(lambda m, x: m.head4(x.view(len(x), -1))), images(2))
    with pytest.raises(ConfigurationError, match="does not fit the model") as caught:
        FireflyNet.from_module(odd_model("cat of cat"), torch.zeros(2, 5, 8, 8).double())
    assert "to have 2 channels" in str(caught.value) and len(str(caught.value)) < 300
    assert capsys.readouterr().err == ""
    for example in (torch.zeros(6), torch.zeros(2, 6).numpy()):
        with pytest.raises(ConfigurationError, match="is no batch: pass a tensor"):
            FireflyNet.from_module(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), example)
    no_head = Parts(lambda m, x: pooled(m.a(x)))
    with pytest.raises(ConfigurationError, match="no Linear"):
        FireflyNet.from_module(no_head.double().eval(), images(2))


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4, momentum=None)],
    ids=["no statistics", "no momentum"],
)
def test_norms_without_running_statistics_are_refused(norm: nn.Module) -> None:
    model = Parts(lambda m, x: m.head4(pooled(m.odd_norm(m.a(x)))))
    model.odd_norm = norm
    with pytest.raises(UnsupportedOperation, match="odd_norm"):
        FireflyNet.from_module(model.double().eval(), images(2))


class Wave(nn.Module):
    """x + sin(frequency x), unknown to the tracer until it is taught."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        return wave(x, self.frequency)


def wave(x: Tensor, frequency: float) -> Tensor:
    return x + torch.sin(frequency * x)


@pytest.fixture
def untaught() -> Iterator[None]:
    """Forget afterwards what a test teaches."""
    yield
    MAPS.pop("wave", None)
    MODULE_RULES.pop(Wave, None)
    CALL_RULES.pop(torch.sin, None)


def test_a_new_activation_can_be_taught(untaught: None, tmp_path: Path) -> None:
    model = Parts(lambda m, x: m.head4(pooled(m.wave(m.a(x)))))
    model.wave = Wave(1.7)
    model.double().eval()
    with pytest.raises(UnsupportedOperation):
        FireflyNet.from_module(model, images(2))
    register_map("wave", wave)
    register_rule(Wave, map_module("wave", "frequency"))
    net = FireflyNet.from_module(model, images(2)).eval()
    save_net(net, tmp_path / "net.safetensors")
    loaded, _ = load_net(tmp_path / "net.safetensors")
    x = images(4)
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-9, atol=1e-10)
        assert torch.equal(loaded(x), net(x))
        torch.testing.assert_close(extract(loaded)(x), model(x), rtol=1e-9, atol=1e-10)
    with pytest.raises(UnsupportedOperation, match="already there"):
        register_map("wave", lambda x: x)
    MAPS.pop("wave")
    with pytest.raises(FileError, match="'wave' that this process does not know: teach it"):
        load_net(tmp_path / "net.safetensors")


def test_a_new_function_can_be_taught(untaught: None) -> None:
    model = Parts(lambda m, x: m.head4(pooled(torch.sin(m.a(x))))).double().eval()
    with pytest.raises(UnsupportedOperation, match="no rule for sin"):
        FireflyNet.from_module(model, images(2))
    register_map("wave", torch.sin)
    register_rule(torch.sin, map_call("wave"))
    net = FireflyNet.from_module(model, images(2))
    with torch.no_grad():
        torch.testing.assert_close(net(images()), model(images()), rtol=1e-9, atol=1e-10)
