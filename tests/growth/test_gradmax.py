"""GradMax: no choice of new weights of the same size has a greater gradient to learn from."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from growing_nets import (
    CHANNELS,
    NAMES,
    VARIED,
    answers,
    begin,
    close,
    images,
    net_of,
    seeded,
    shake,
    two_tasks,
)
from torch import Tensor, nn

from firefly_cl.growth.budget import Budget
from firefly_cl.growth.candidates import propose
from firefly_cl.growth.criterion import Model
from firefly_cl.growth.execution import CandidateExecution
from firefly_cl.growth.gradmax import GradMax
from firefly_cl.growth.linear_response import (
    as_vectors,
    incoming_size,
    linear_at_zero,
    mean_gradients,
    new_units,
    outgoing_size,
    response_matrix,
)
from firefly_cl.growth.surroundings import Surroundings, weight_slope
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import widen
from firefly_cl.network.layers import GrowableLayer

Batch = tuple[Tensor, Tensor]
BATCH = (images(24, seed=3), torch.arange(24) % 3)
RATE = 0.01


def loss(model: Model, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Tanh(nn.Module):
    """Convolutions with a stride, a mean and a residual branch, no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(CHANNELS, 4, 3, padding=1, stride=2)
        self.two = nn.Conv2d(4, 5, 3, padding=1)
        self.branch = nn.Conv2d(5, 5, 1)
        self.dense = nn.Linear(5 * 4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.one(x))
        x = torch.tanh(self.two(x))
        x = F.avg_pool2d(x + torch.tanh(self.branch(x)), 2).flatten(1)
        logits: Tensor = self.head(F.gelu(self.dense(x)))
        return logits


def smooth(tasks: int = 1) -> FireflyNet:
    torch.manual_seed(0)
    model = Tanh().double()
    shake(model)
    net = FireflyNet.from_module(model.eval(), images(2))
    if tasks == 2:
        begin(net, classes=3, widths=4)
    return net.eval()


def gradients(net: FireflyNet, names: list[str]) -> list[Tensor]:
    """Of the loss, over all columns of the newest task's rows of some layers."""
    blocks = [net.layers[name].block(net.current) for name in names]  # type: ignore[union-attr,operator]
    pairs = [(b.from_old, b.from_own) for b in blocks]
    every = [p for pair in pairs for p in pair]
    found = torch.autograd.grad(loss(net, BATCH), every, materialize_grads=True)
    return [torch.cat(found[i : i + 2], 1) for i in range(0, len(found), 2)]


def learning(net: FireflyNet, space: str, units: int) -> Tensor:
    """Gradient norms on the incoming rows of the last units of a space; no repeated channels."""
    found = gradients(net, [node.name for node in net.producers(space)])
    return torch.cat([g[-units:].reshape(units, -1) for g in found], 1).norm(dim=1)


def step(net: FireflyNet, amount: int = 1) -> tuple[FireflyNet, list[tuple[str, float]]]:
    grown = copy.deepcopy(net)
    growth = GradMax(rate=RATE).grow(grown, [BATCH], loss, Budget(amount), seeded())
    return grown, [(c.space, math.sqrt(c.gain / RATE)) for c in growth.kept]


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("space", ["one", "two", "dense"])
def test_incoming_gradients_are_the_singular_values_and_beat_random_ones(
    space: str, tasks: int
) -> None:
    net = smooth(tasks)
    assert linear_at_zero(net, space)
    matrix = response_matrix(net, [space], Surroundings(net, [BATCH], loss))[space]
    made = GradMax().propose(net, space, matrix, 2, seeded())[space]
    best = copy.deepcopy(net)
    widen(best, space, 2, made.incoming, made.outgoing)
    found = learning(best, space, 2)
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(found, values[:2], rtol=1e-6, atol=1e-12)
    by_chance = torch.randn(200, outgoing_size(net, space), generator=seeded(7)).double()
    by_chance /= by_chance.norm(dim=1, keepdim=True)
    drawn = new_units(net, space, torch.zeros(200, incoming_size(net, space)), by_chance)[space]
    widen(net, space, 200, drawn.incoming, drawn.outgoing)
    random = learning(net, space, 200)
    assert float(random.max()) <= float(found[0]) * (1 + 1e-9)
    assert float(random.max()) > 0.05 * float(found[0])
    assert close(answers(best, BATCH[0]), answers(smooth(tasks), BATCH[0]))


def test_the_matrix_of_a_linear_chain_is_inputs_times_gradients() -> None:
    net = smooth()
    found = response_matrix(net, ["dense"], Surroundings(net, [BATCH], loss))["dense"]
    model = Tanh().double()
    torch.manual_seed(0)
    model = Tanh().double()
    shake(model)
    x = F.silu(model.one(BATCH[0]))
    x = torch.tanh(model.two(x))
    x = F.avg_pool2d(x + torch.tanh(model.branch(x)), 2).flatten(1)
    logits = model.head(F.gelu(model.dense(x)))
    (g,) = torch.autograd.grad(F.cross_entropy(logits, BATCH[1]), logits)
    expected = 0.5 * x.T @ g  # the slope of GELU at 0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("name", ["mlp", "mlp-bn", "vgg11", "resnet9", "concat", "grouped"])
def test_outgoing_gradients_beat_random_ones_where_zero_rows_cannot_learn(
    name: str, tasks: int
) -> None:
    net = net_of(name)
    if tasks == 2:
        begin(net, classes=3, widths=4)
    net.eval()
    for space in net.growable_spaces():
        assert not linear_at_zero(net, space)
    grown, kept = step(net)
    ((space, predicted),) = kept
    found = gradients(grown, [node.name for node in grown.consumers(space)])
    repeats = [
        sum(s.repeat for s in grown.layers[node.name].reads if s.space == space)  # type: ignore[union-attr]
        for node in grown.consumers(space)
    ]
    if len(grown.layers[grown.consumers(space)[0].name].reads) == 1:  # type: ignore[arg-type]
        columns = [g[:, -r:].flatten() for g, r in zip(found, repeats, strict=True)]
        # statistics of new units are unbiased: n / (n - 1) of the batch's variance
        assert float(torch.cat(columns).norm()) == pytest.approx(predicted, rel=0.03)
    by_chance = torch.randn(200, incoming_size(net, space), generator=seeded(7)).double()
    by_chance *= math.sqrt(2.0) / by_chance.norm(dim=1, keepdim=True)
    nothing = torch.zeros(200, outgoing_size(net, space))
    drawn = new_units(net, space, by_chance, nothing)
    drawn[space].new_gates.fill_(1.0)
    tensors = list(drawn[space].outgoing.values())
    random = as_vectors(mean_gradients(net, drawn, tensors, [BATCH], loss), 200).norm(dim=1)
    assert float(random.max()) < predicted
    assert close(answers(grown, BATCH[0]), answers(net, BATCH[0]))


@pytest.mark.parametrize("name", ["smooth", *(n for n in NAMES if n != "mobilenetv1")])
def test_a_gradient_step_on_the_new_weights_gains_what_was_predicted(name: str) -> None:
    net = smooth() if name == "smooth" else net_of(name).eval()
    rate = 1e-4
    widths = net.widths()
    before = loss(net, BATCH).detach()
    growth = GradMax(rate=rate).grow(net, [BATCH], loss, Budget(4), seeded())
    assert float(loss(net, BATCH).detach()) == pytest.approx(float(before), abs=1e-12)
    value = loss(net, BATCH)
    named = dict(net.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), materialize_grads=True)
    decrease = 0.0
    with torch.no_grad():
        for space in growth.by_space():
            first = widths[space][0]
            linear = linear_at_zero(smooth() if name == "smooth" else net_of(name), space)
            nodes = net.producers(space) if linear else net.consumers(space)
            for node in nodes:
                key = f"layers.{node.name}.blocks.0.from_own"
                gradient = found[list(named).index(key)]
                old = found[list(named).index(key.replace("own", "old"))]
                layout = node.layout if linear else net.node(node.inputs[0]).layout
                start = 0
                for segment in layout:
                    size = net.spaces[segment.space].width(0) * segment.repeat
                    if segment.space == space:
                        at = slice(start + first * segment.repeat, start + size)
                        for part in (gradient, old) if linear else (gradient.movedim(0, 1),):
                            if part.numel():
                                decrease += rate * float(part[at].square().sum())
                    start += size
    assert growth.gain == pytest.approx(decrease, rel=0.05)
    assert len(growth.kept) == 4 and growth.gain > 0


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("tanh", True), ("silu", True), ("relu", False), ("leaky_relu", False), ("sigmoid", False)],
)
def test_zero_rows_learn_where_the_activation_has_a_slope_at_zero(
    activation: str, expected: bool
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.head = nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(getattr(F, activation)(self.one(x)))
            return logits

    torch.manual_seed(0)
    net = FireflyNet.from_module(Net().double().eval(), torch.zeros(2, 8).double()).eval()
    assert linear_at_zero(net, "one") == expected
    x, before = torch.randn(32, 8, generator=seeded(1)).double(), net.widths()
    batch = (x, torch.arange(32) % 3)
    GradMax().grow(net, [batch], loss, Budget(1), seeded())
    block = net.layers["one"].block(0)  # type: ignore[union-attr,operator]
    head = net.layers["head"].block(0)  # type: ignore[union-attr,operator]
    rows, columns = torch.autograd.grad(loss(net, batch), [block.from_old, head.from_own])
    new = before["one"][0]
    assert bool(rows[new:].any()) == expected and bool(columns[:, new:].any()) != expected


@pytest.mark.parametrize("name", ["mlp-bn", "vgg11"])
def test_no_two_new_units_are_the_same(name: str) -> None:
    net = net_of(name, width=8).eval()
    growth = GradMax().grow(net, [BATCH], loss, Budget(1000), seeded())
    for space, count in growth.by_space().items():
        (producer,) = net.producers(space)
        block = net.layers[producer.name].block(0)  # type: ignore[union-attr,operator]
        rows = torch.cat([block.from_old, block.from_own], 1)[-count:].flatten(1)
        cosines = F.cosine_similarity(rows[:, None], rows[None], dim=2) - torch.eye(count)
        assert float(cosines.max()) < 0.9


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("name", [*VARIED, "vgg11"])
def test_new_units_run_alone_have_the_gradients_of_the_whole_network(name: str, tasks: int) -> None:
    """Against the double backward pass through everything that running them alone leaves out."""
    net = net_of(name) if tasks == 1 else two_tasks(name)
    net.eval()
    candidates = propose(net, net.growable_spaces(), 3, 0, seeded(), splits=False)
    rows, columns = [], []
    for made in candidates.values():
        made.new_gates.fill_(1.0)
        rows += [rows.requires_grad_() for rows in made.incoming.values()]
        columns += [columns.zero_().requires_grad_() for columns in made.outgoing.values()]
    batches = [BATCH, (images(4, seed=9), torch.tensor([2, 1, 0, 1]))]

    def whole() -> Tensor:
        def model(x: Tensor) -> Tensor:
            return CandidateExecution(net, candidates).run(x)

        return torch.stack([loss(model, batch) for batch in batches]).mean()

    alone = Surroundings(net, batches, loss).slopes(candidates)
    found = []
    for first in (
        torch.autograd.grad(whole(), columns, create_graph=True, materialize_grads=True),
        [slope for by_consumer in alone.values() for slope in by_consumer.values()],
    ):
        size = torch.stack([gradient.square().sum() for gradient in first]).sum()
        found.append([*first, *torch.autograd.grad(size, rows, materialize_grads=True)])
    assert sum(float(gradient.abs().max()) > 0 for gradient in found[0]) >= 4
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)


def test_a_loss_that_runs_the_network_twice_is_watched_twice() -> None:
    net = net_of("mlp").eval()
    candidates = propose(net, net.growable_spaces(), 2, 0, seeded(), splits=False)
    columns = [c for made in candidates.values() for c in made.outgoing.values()]
    for made in candidates.values():
        made.new_gates.fill_(1.0)
        for column in made.outgoing.values():
            column.zero_().requires_grad_()

    def twice(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) * model(-batch[0])).square().mean()

    def model(x: Tensor) -> Tensor:
        return CandidateExecution(net, candidates).run(x)

    surroundings = Surroundings(net, [BATCH], twice)
    assert len(surroundings.passes) == 2
    expected = torch.autograd.grad(twice(model, BATCH), columns)
    got = [s for slopes in surroundings.slopes(candidates).values() for s in slopes.values()]
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": "same"},
        {"padding": "valid"},
        {"kernel_size": (2, 3), "padding": "same"},
        {"padding": 0, "dilation": 2},
        {"padding": (3, 0), "stride": (1, 1)},
        {"padding": 1, "stride": 2},
        {"padding": 1, "stride": (1, 2), "dilation": (2, 1)},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 1, "stride": (3, 1), "padding": "valid"},
        {"kernel_size": 1, "stride": 2, "padding": 1},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_slopes_of_convolutions_are_autograd_s(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, **{"kernel_size": 3, "bias": False, **options}).double()  # type: ignore[arg-type]
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), conv, nn.Flatten())
    size = conv(x).flatten(1).shape[1]
    net = FireflyNet.from_module(
        nn.Sequential(*model, nn.Linear(size, 2)).double(), torch.zeros(2, 2, 7, 6).double()
    )
    layer = net.layers[net.consumers(net.growable_spaces()[0])[0].name]
    assert isinstance(layer, GrowableLayer)
    slope = torch.randn_like(conv(x))
    got = weight_slope(layer, x, slope)
    (expected,) = torch.autograd.grad((conv(x) * slope).sum(), conv.weight, create_graph=True)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    along = torch.randn_like(got)
    one, other = (torch.autograd.grad((g * along).sum(), x)[0] for g in (got, expected))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("channels", [1, 4, 12, 16])
def test_slopes_of_strided_pointwise_convolutions_are_right_with_channels_last(
    channels: int, padding: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where oneDNN would write past its buffers, no strided kernel of it is called."""
    strides = []

    def watched(x: Tensor, size: object, slope: Tensor, stride: object, *rest: object) -> Tensor:
        strides.append(stride)
        found: Tensor = torch.nn.grad.conv2d_weight(x, size, slope, stride, *rest)
        return found

    monkeypatch.setattr("firefly_cl.growth.surroundings.conv2d_weight", watched)
    pointwise = nn.Conv2d(channels, 9, 1, stride=2, padding=padding)
    points = pointwise(torch.zeros(1, channels, 7, 6)).shape[2:]
    head = nn.Linear(9 * points.numel(), 2)
    model = nn.Sequential(nn.Conv2d(3, channels, 1), pointwise, nn.Flatten(), head)
    net = FireflyNet.from_module(model, torch.zeros(2, 3, 7, 6))
    layer = net.layers[net.consumers(net.growable_spaces()[0])[0].name]
    assert isinstance(layer, GrowableLayer)
    x = torch.randn(8, channels, 7, 6, generator=seeded(1))
    slope = torch.randn(8, 9, *points, generator=seeded(2))
    along = torch.randn(9, channels, 1, 1, generator=seeded(3))
    found = []
    for layout, dtype in (
        (torch.channels_last, torch.float32),
        (torch.contiguous_format, torch.float64),
    ):
        read = x.to(dtype).contiguous(memory_format=layout).requires_grad_()
        got = weight_slope(layer, read, slope.to(dtype).contiguous(memory_format=layout))
        (back,) = torch.autograd.grad((got * along).sum(), read)
        found.append((got.float(), back.float()))
    assert strides == [(1, 1) if channels < 16 else (2, 2)] * 2
    torch.testing.assert_close(*found)
