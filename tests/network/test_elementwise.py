"""Elementwise functions and numbers keep units apart; a unit that is not there adds no f(0)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from growing_nets import CHANNELS, answers, assert_same_state, begin, images, seeded, snapshot
from torch import Tensor, nn

from firefly_cl.errors import UnsupportedOperation
from firefly_cl.growth.candidates import propose
from firefly_cl.growth.execution import CandidateExecution
from firefly_cl.network import FireflyNet, extract
from firefly_cl.network.edits import insert, prune, widen


class Functions(nn.Module):
    """A function of the features of one convolution, and of a second one's."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.one = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self.one(x))
        logits: Tensor = self.head((x + self.function(self.two(x))).mean((2, 3)))
        return logits


def gaussian(x: Tensor) -> Tensor:
    return torch.exp(-(x**2) / 2)


def net_of(function: Callable[[Tensor], Tensor]) -> tuple[FireflyNet, Functions]:
    torch.manual_seed(0)
    model = Functions(function).double().eval()
    return FireflyNet.from_module(model, images(2)).eval(), model


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda x: torch.exp(x),
    "square": lambda x: x.square().exp(),
    "negative": lambda x: -x + torch.neg(x),
    "abs": lambda x: x.abs() + abs(0.5),
    "product": lambda x: 0.5 * x * 3,
    "quotient": lambda x: torch.div(x, 4) / -2.0,
    "difference": lambda x: x - 1.5,
    "sum": lambda x: 2 + x.add(0.25),
    "power": lambda x: torch.pow(x, 3) + x**2,
    "gaussian": gaussian,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_traced_as_they_are(name: str) -> None:
    net, model = net_of(FUNCTIONS[name])
    assert set(net.widths()) == {"one"}  # the sum ties both layers' units, nothing else does
    x = images(5, seed=7)
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(extract(net)(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: torch.mul(x, other=x), "only a product of two tensors, or of a tensor and"),
        (lambda x: 1 / (x.exp() + 1), "divided by a number other than 0 only"),
        (lambda x: 1 - x, "write -x"),
        (lambda x: 2**x, "use exp"),
        (lambda x: x - torch.exp(x), "only a difference of a tensor and a number"),
        (lambda x: torch.add(x, 1, alpha=2), "only a sum of two tensors, or of a tensor and"),
    ],
)
def test_what_would_tie_units_is_an_error_that_names_its_line(
    function: Callable[[Tensor], Tensor], says: str
) -> None:
    with pytest.raises(UnsupportedOperation, match=says) as caught:
        net_of(function)
    assert "test_elementwise.py" in str(caught.value)


def test_units_that_are_not_there_add_nothing_where_the_function_is_not_0_at_0() -> None:
    net, _ = net_of(gaussian)
    x = images(5, seed=7)
    before = answers(net, x)
    widen(net, "one", 3, generator=seeded())  # read by nothing yet
    torch.testing.assert_close(answers(net, x), before, rtol=1e-12, atol=1e-12)
    prune(net, "one", torch.arange(4))
    torch.testing.assert_close(answers(net, x), before, rtol=1e-12, atol=1e-12)
    insert(net, net.producers("one")[0].name, 2, norm=False, generator=seeded())
    torch.testing.assert_close(answers(net, x), before, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_pruned_unit_takes_its_value_at_0_with_it() -> None:
    net, model = net_of(gaussian)
    prune(net, "one", torch.tensor([0, 2, 3]))
    kept = [0, 2, 3]
    small = Functions(gaussian).double()
    small.one.weight.data, small.one.bias.data = model.one.weight[kept], model.one.bias[kept]
    small.two.weight.data = model.two.weight[kept][:, kept]
    small.two.bias.data = model.two.bias[kept]
    small.head.weight.data, small.head.bias.data = model.head.weight[:, kept], model.head.bias
    x = images(5, seed=7)
    torch.testing.assert_close(net(x), small(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(extract(net)(x), small(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_later_tasks_read_only_what_they_chose() -> None:
    net, _ = net_of(gaussian)
    x = images(5, seed=7)
    first = net(x, 0)
    begin(net, classes=3, widths={"one": 2}, reads={"one": torch.tensor([1])})
    widen(net, "one", 2, generator=seeded())
    begin(net, classes=2, widths={"one": 1}, reads={"one": torch.tensor([0, 5])})
    assert torch.equal(net(x, 0), first)
    for task in range(3):
        torch.testing.assert_close(extract(net, task)(x), net(x, task), rtol=1e-11, atol=1e-12)
    # task 2 by hand: its head reads units 0 and 5 and its own
    read = net.layers["head"].block(2)  # type: ignore[operator,union-attr]
    changed = net(x, 2)
    read.from_old[:] = 0.0
    read.from_own[:] = 0.0
    assert not torch.equal(net(x, 2), changed)
    torch.testing.assert_close(net(x, 2), read.bias.expand(5, 2), rtol=0, atol=0)


def test_candidates_with_closed_gates_add_nothing() -> None:
    net, _ = net_of(gaussian)
    begin(net, classes=3, widths=2)
    before, x = snapshot(net), images(5, seed=7)
    candidates = propose(net, ["one"], 4, 3, seeded())
    with torch.no_grad():
        run = CandidateExecution(net, candidates).run(x)
        torch.testing.assert_close(run, net(x), rtol=1e-12, atol=1e-12)
    assert_same_state(net, before)
