"""What cannot grow is named, with its line; so is what cannot be converted."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from growing_nets import CHANNELS, SIDE, images, seeded
from odd_nets import Forward, Parts, pooled
from torch import Tensor, nn

from firefly_cl.errors import ConfigurationError, UnsupportedOperation
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import split, widen

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
        fitting = Parts(lambda m, x: m.head4(pooled(m.a(x)))).eval()
        FireflyNet.from_module(fitting, torch.zeros(2, 5, 8, 8))
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


def test_what_a_layer_cannot_keep_is_told() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"_0 did not train \(requires_grad=False\)"):
        FireflyNet.from_module(net, torch.zeros(2, 6))
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.utils.parametrizations.spectral_norm(net[0])
    with pytest.raises(UnsupportedOperation, match=r"parametrized layer .*remove_parametrizations"):
        FireflyNet.from_module(net, torch.zeros(2, 6))
