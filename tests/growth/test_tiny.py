"""TINY: the move that a layer cannot make by itself, and units that make it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from growing_nets import (
    CHANNELS,
    answers,
    assert_same_state,
    begin,
    images,
    net_of,
    seeded,
    shake,
    snapshot,
)
from torch import Tensor, nn

from firefly_cl.errors import EditError, NothingToGrow
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.criterion import Model
from firefly_cl.growth.linear_response import new_units
from firefly_cl.growth.tiny import Tiny, bottleneck, desired_moves, solve, unsupported
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import widen
from firefly_cl.network.execution import Execution

Batch = tuple[Tensor, Tensor]
BATCHES = [(images(24, seed=s), torch.arange(24) % 3) for s in (3, 4)]


def loss(model: Model, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Chain(nn.Module):
    """Smooth convolutions (a stride, average pooling) and dense layers, the first two linear."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 5, 3, padding=1, stride=2)
        self.three = nn.Linear(5 * 4, 6)
        self.four = nn.Linear(6, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.two(F.avg_pool2d(self.one(x), 3, stride=1, padding=1)))
        x = self.four(self.three(F.avg_pool2d(x, 2).flatten(1)))
        logits: Tensor = self.head(torch.tanh(x))
        return logits


def chain(tasks: int = 1) -> tuple[FireflyNet, Chain]:
    torch.manual_seed(0)
    model = Chain().double()
    shake(model)
    net = FireflyNet.from_module(model.eval(), images(2))
    if tasks == 2:
        begin(net, classes=3, widths=4)
    return net.eval(), model


def test_a_dense_linear_layer_against_its_definition() -> None:
    net, model = chain()
    x = torch.cat([b[0] for b in BATCHES])
    b = F.avg_pool2d(torch.tanh(model.two(F.avg_pool2d(model.one(x), 3, 1, 1))), 2).flatten(1)
    read = model.three(b)
    a = model.four(read).detach().requires_grad_()
    halves = zip(a.split(24), BATCHES, strict=True)
    total = sum(F.cross_entropy(model.head(torch.tanh(z)), y) for z, (_, y) in halves)
    (g,) = torch.autograd.grad(total, a)
    b_l = torch.cat([read, torch.ones(48, 1)], 1).detach()
    v = -g - b_l @ torch.linalg.lstsq(b_l, -g).solution
    found = desired_moves(net, ["three"], BATCHES, loss)["three"]
    torch.testing.assert_close(torch.cat(found), v, rtol=1e-7, atol=1e-12)
    assert float((v.T @ b_l).abs().max()) < 1e-10 * float((g.T @ b_l).abs().max())
    s, n = bottleneck(net, "three", BATCHES, loss, found)
    torch.testing.assert_close(s, (b.T @ b / 48).detach())
    torch.testing.assert_close(n, (b.T @ v / 2).detach(), rtol=1e-7, atol=1e-12)
    rows, values, columns = solve(s, n, 1e-12, 3)
    for k in range(len(values)):
        assert float(rows[k] @ s @ rows[k]) == pytest.approx(1)
        assert float(columns[k].norm()) == pytest.approx(1)
        assert float(rows[k] @ n @ columns[k]) == pytest.approx(float(values[k]))
    for seed in range(200):  # no other unit of the same size moves the layer as far along V
        x_, w = torch.randn(len(s) + 7, generator=seeded(seed)).double().split([len(s), 7])
        assert float(x_ @ n @ w) <= float((x_ @ s @ x_).sqrt() * w.norm() * values[0])


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("space", ["one", "two", "three", "four"])
def test_what_is_wanted_is_out_of_reach_of_the_layer_s_own_weights(space: str, tasks: int) -> None:
    net, _ = chain(tasks)
    name = net.consumers(space)[0].name
    wanted = desired_moves(net, [space], BATCHES, loss)[space]
    block = net.layers[name].block(net.current)  # type: ignore[union-attr,operator]
    parameters = [p for p in block.parameters() if p.numel()]
    reached, plain = 0.0, 0.0
    outputs = []
    for batch, _ in zip(BATCHES, wanted, strict=True):
        outputs.append(_rows_of(net, name, batch[0]))
    for values, like in ((wanted, "wanted"), ([torch.ones_like(v) for v in wanted], "plain")):
        total = sum((o * v).sum() for o, v in zip(outputs, values, strict=True))
        found = torch.autograd.grad(total, parameters, retain_graph=True)
        size = max(float(f.abs().max()) for f in found)
        if like == "wanted":
            reached = size / max(float(v.abs().max()) for v in values)
        else:
            plain = size
    assert reached < 1e-8 * plain


def _rows_of(net: FireflyNet, name: str, x: Tensor) -> Tensor:
    """Output of the newest task's rows of a layer, a function of their weights."""
    kept: list[Tensor] = []

    class Keeping(Execution):
        def layer(self, node, value):  # type: ignore[no-untyped-def]
            out = super().layer(node, value)
            if node.name == name:
                kept.append(out["new"])
            return out

        def head(self, node, value):  # type: ignore[no-untyped-def]
            out = super().head(node, value)
            if node.name == name:
                kept.append(out["new"])
            return out

    Keeping(net, net.current).run(x)
    return kept[0]


def test_convolutions_against_running_them() -> None:
    """x^T N w is the product of V with what a unit of rows x and columns w would add."""
    net, model = chain()
    for space, size, out in (("one", CHANNELS * 9, 5 * 9), ("two", 4 * 9, 6 * 4)):
        wanted = desired_moves(net, [space], BATCHES, loss)[space]
        s, n = bottleneck(net, space, BATCHES, loss, wanted)
        assert n.shape == (size, out)
        x, w = torch.randn(size + out, generator=seeded(1)).double().split([size, out])
        total, power, count = 0.0, 0.0, 0
        for (inputs, _), v in zip(BATCHES, wanted, strict=True):
            if space == "one":
                unit = F.conv2d(inputs, x.view(1, CHANNELS, 3, 3), padding=1)
                unit = F.avg_pool2d(unit, 3, 1, 1)
                added = F.conv2d(unit, w.view(5, 1, 3, 3), padding=1, stride=2)
            else:
                read = F.avg_pool2d(model.one(inputs), 3, 1, 1)
                unit = F.conv2d(read, x.view(1, 4, 3, 3), padding=1, stride=2)
                unit = F.avg_pool2d(unit, 2).flatten(1)
                added = unit @ w.view(4, 6)
            total += float((added * v).sum()) / 2
            power, count = power + float(unit.square().sum()), count + unit.numel()
        assert float(x @ n @ w) == pytest.approx(total, rel=1e-6)
        assert float(x @ s @ x) == pytest.approx(power / count, rel=1e-6)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize(
    "name", ["chain", "mlp", "mlp-bn", "vgg11", "resnet9", "concat", "grouped", "mobilenetv1"]
)
def test_the_loss_falls_by_what_was_predicted(name: str, tasks: int) -> None:
    net = chain()[0] if name == "chain" else net_of(name).eval()
    if tasks == 2:
        begin(net, classes=3, widths=4)
    # batch statistics differ from those kept by n / (n - 1): one batch of many images
    batch = (images(192, seed=3), torch.arange(192) % 3)
    net.eval()
    older = answers(net, batch[0])[0]
    before = loss(net, batch).detach()
    growth = Tiny(reach=1e-5).grow(net, [batch], loss, Budget(6), seeded())
    obtained = float(before - loss(net, batch).detach())
    assert growth.gain > 0 and obtained / growth.gain == pytest.approx(1, abs=0.02)
    assert tasks == 1 or torch.equal(answers(net, batch[0])[0], older)


def test_lambda_is_how_far_a_committed_unit_moves_the_layer_along_v() -> None:
    net, _ = chain()
    batch = (images(200, seed=3), torch.arange(200) % 3)
    wanted = desired_moves(net, ["three"], [batch], loss)["three"]
    s, n = bottleneck(net, "three", [batch], loss, wanted)
    rows, values, columns = solve(s, n, 1e-12, 1)
    step = 1e-6
    a = _rows_of(net, "four", batch[0]).detach()
    widen(net, "three", 1, {"three": rows}, {"four": step * columns.T})
    moved = (_rows_of(net, "four", batch[0]).detach() - a) / step
    assert float((moved * wanted[0]).sum()) == pytest.approx(float(values[0]), rel=1e-5)


class Separable(nn.Module):
    """A depthwise convolution with a stride between two that mix channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=4)
        self.two = nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Linear(5 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.two(self.depthwise(torch.tanh(self.one(x)))))
        logits: Tensor = self.head(F.avg_pool2d(x, 2).flatten(1))
        return logits


def test_a_unit_passes_a_depthwise_convolution_as_it_is() -> None:
    torch.manual_seed(0)
    model = Separable().double()
    shake(model)
    net = FireflyNet.from_module(model.eval(), images(2)).eval()
    wanted = desired_moves(net, ["one"], BATCHES, loss)["one"]
    s, n = bottleneck(net, "one", BATCHES, loss, wanted)
    x, w = torch.randn(CHANNELS * 9 + 5 * 9, generator=seeded(1)).double().split([CHANNELS * 9, 45])
    total, power, count = 0.0, 0.0, 0
    for (inputs, _), v in zip(BATCHES, wanted, strict=True):
        unit = F.conv2d(inputs, x.view(1, CHANNELS, 3, 3), padding=1)[:, :, ::2, ::2]
        total += float((F.conv2d(unit, w.view(5, 1, 3, 3), padding=1) * v).sum()) / 2
        power, count = power + float(unit.square().sum()), count + unit.numel()
    assert float(x @ n @ w) == pytest.approx(total, rel=1e-6)
    assert float(x @ s @ x) == pytest.approx(power / count, rel=1e-6)
    step, (rows, _, columns) = 1e-6, solve(s, n, 1e-12, 1)
    batch = BATCHES[0][0]
    before = _rows_of(net, "two", batch).detach()
    made = new_units(net, "one", rows, step * columns)["one"]
    widen(net, "one", 1, made.incoming, made.outgoing)
    unit = F.conv2d(batch, rows.view(1, CHANNELS, 3, 3), padding=1).tanh()[:, :, ::2, ::2]
    moved = (_rows_of(net, "two", batch).detach() - before) / step
    torch.testing.assert_close(
        moved, F.conv2d(unit, columns.view(5, 1, 3, 3), padding=1), rtol=1e-6, atol=1e-8
    )


class Tied(nn.Module):
    """One space, written by two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        logits: Tensor = self.head((x + self.branch(x)).mean((2, 3)))
        return logits


def test_a_network_that_it_cannot_grow_is_an_error_that_names_the_layer() -> None:
    net = FireflyNet.from_module(Tied().double().eval(), images(2))
    before = snapshot(net)
    with pytest.raises(EditError, match=r"stem.*branch.*choose gradmax"):
        Tiny().grow(net, BATCHES, loss, Budget(4), seeded())
    assert_same_state(net, before)


def test_spaces_that_it_cannot_grow_are_passed_over() -> None:
    net = net_of("concat")
    why = {space: unsupported(net, space) for space in net.growable_spaces()}
    assert "features_2_square" in why["features_0_0"] and not why["features_5_0"]
    growth = Tiny().grow(net, BATCHES, loss, Budget(4), seeded())
    assert growth.by_space() and not any(why[space] for space in growth.by_space())


@pytest.mark.parametrize("name", ["mlp", "concat"])
def test_spaces_that_no_own_row_reads_are_passed_over(name: str) -> None:
    net = net_of(name)
    spaces = net.growable_spaces()
    begin(net, classes=3, widths={space: 2 * (space == spaces[0]) for space in spaces})
    growth = Tiny().grow(net, BATCHES, loss, Budget(2), seeded())
    assert set(growth.by_space()) == {spaces[-1]}


def test_a_task_that_has_no_row_where_it_could_grow_says_so() -> None:
    net = net_of("resnet9")
    begin(net, classes=3, widths=0)
    before = snapshot(net)
    with pytest.raises(NothingToGrow, match="task 1 has no row of its own"):
        Tiny().grow(net, BATCHES, loss, Budget(4), seeded())
    assert_same_state(net, before)


def test_nothing_grows_where_nothing_but_rounding_is_promised() -> None:
    """What one image wants of a layer, its bias brings."""
    net = net_of("mlp")
    batch = (images(1), torch.tensor([2]))
    before = snapshot(net)
    growth = Tiny().grow(net, [batch], loss, Budget(4), seeded())
    assert not growth.by_space()
    assert_same_state(net, before)


def test_a_space_where_nothing_but_rounding_is_promised_gets_no_unit() -> None:
    """All images look alike to the last layers of this network: no unit could tell them apart."""
    net = net_of("mobilenetv1").eval()
    space = net.growable_spaces()[-1]
    second, crossed = bottleneck(
        net, space, BATCHES, loss, desired_moves(net, [space], BATCHES, loss)[space]
    )
    assert second.abs().max() > 1e-3 and not crossed.any()
    growth = Tiny().grow(net, BATCHES, loss, Budget(4), seeded())
    assert growth.by_space() and space not in growth.by_space()
