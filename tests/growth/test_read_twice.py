"""A space that one layer reads in two places is scored and cut as it is used: twice."""

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
    seeded,
    shake,
    snapshot,
)
from torch import Tensor, nn

from firefly_cl.errors import EditError, FireflyError
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget, Candidate
from firefly_cl.growth.candidates import join_places, part_places, propose
from firefly_cl.growth.commit import commit
from firefly_cl.growth.criterion import Model
from firefly_cl.growth.execution import CandidateExecution
from firefly_cl.growth.linear_response import incoming_size, outgoing_size, response_matrix
from firefly_cl.growth.splitting import Splitting
from firefly_cl.growth.surroundings import Surroundings
from firefly_cl.network import FireflyNet, extract
from firefly_cl.network.edits import widen

BATCH = (images(12, seed=3), torch.arange(12) % 3)


class Twice(nn.Module):
    """A tensor joined with itself, a sum behind joins, and a head that reads features twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(CHANNELS, 3, 3, padding=1)
        self.two = nn.Conv2d(CHANNELS, 3, 3, padding=1)
        self.mix = nn.Conv2d(9, 2, 3, padding=1, stride=2)
        self.head = nn.Linear(2 * 2 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = torch.tanh(self.one(x)), torch.sigmoid(self.two(x))
        joined = torch.cat([one, two, one], 1) + torch.cat([two, one, one], 1)
        x = F.avg_pool2d(torch.tanh(self.mix(joined)), 2)
        logits: Tensor = self.head(torch.cat([x, x], 1).flatten(1))
        return logits


def loss(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def twice(tasks: int = 1) -> FireflyNet:
    torch.manual_seed(0)
    net = FireflyNet.from_module(Twice().double().eval(), images(2))
    if tasks == 2:
        begin(net, classes=3, widths=2)
    net.eval()
    places = [[s.space for s in net.layers[n].reads] for n in ("mix", "head")]  # type: ignore[union-attr]
    assert places == [["one"] * 3, ["mix"] * 2]
    return net


def test_unit_by_unit_and_place_by_place() -> None:
    one, two = torch.tensor([[0, 1, 10, 11]]), torch.tensor([[2, 12]])
    joined = join_places([one, two], 2)
    assert joined.tolist() == [[0, 1, 2, 10, 11, 12]]
    assert part_places(joined, (2, 1), 2).tolist() == [[0, 1, 10, 11, 2, 12]]


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("space", ["one", "mix"])
@pytest.mark.parametrize("kinds", [("new",), ("split",), ("unlock",), ("split", "unlock", "new")])
def test_what_is_committed_is_what_was_run(tasks: int, space: str, kinds: tuple[str, ...]) -> None:
    net = twice(tasks)
    x, reach = BATCH[0], 0.3
    candidates = propose(net, [space], 3, 2, seeded())
    chosen = [
        Candidate(kind, space, int(unit), 1.0, 1, sign)
        for space, made in candidates.items()
        for kind, units in made.kinds().items()
        if kind in kinds
        for unit, sign in zip(list(units)[1:], (-1.0, 1.0), strict=False)
    ]
    if not chosen:
        assert tasks == 1 and kinds == ("unlock",)
        return
    for candidate in chosen:
        each = candidates[candidate.space]
        for (kind, units), gate in zip(each.kinds().items(), each.gates(), strict=True):
            if kind == candidate.kind:
                gate[list(units).index(candidate.unit)] = torch.tensor(reach * candidate.sign)
    with torch.no_grad():
        expected = CandidateExecution(net, candidates).run(x)
        before = answers(net, x)
        commit(net, candidates, chosen, reach)
        torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(extract(net)(x), expected, rtol=1e-9, atol=1e-12)
        assert float((expected - before[-1]).abs().max()) > 1e-4
        assert tasks == 1 or torch.equal(net(x, 0), before[0])


def test_the_response_to_a_new_unit_is_that_of_one_that_is_there() -> None:
    net = twice()
    matrix = response_matrix(net, ["mix"], Surroundings(net, [BATCH], loss))["mix"]
    size, out = incoming_size(net, "mix"), outgoing_size(net, "mix")
    # `mix` has one producer, behind it tanh (slope 1 at 0), a mean and the head
    step = 1e-4
    row, column = torch.randn(size, generator=seeded(1)), torch.randn(out, generator=seeded(2))
    (node,) = net.producers("mix")
    block = net.layers[node.name].block(0)  # type: ignore[union-attr,operator]
    incoming = step * row.double().view(1, *block.from_own.shape[1:])
    by_unit = column.double().view(2 * 4, 3).T  # both places of the one unit
    before = float(loss(net, BATCH).detach())
    widen(net, "mix", 1, {"mix": incoming}, {"head": step * by_unit}, generator=seeded())
    after = float(loss(net, BATCH).detach())
    promised = float(row.double() @ matrix @ column.double())
    assert (after - before) / step**2 == pytest.approx(promised, rel=1e-3)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("name", CRITERIA.names())
def test_every_criterion_keeps_its_promise(name: str, tasks: int) -> None:
    net = twice(tasks)
    made = CRITERIA.get(name)
    settings = {"reach": 1e-3} if hasattr(made, "reach") else {}
    if name == "gradmax":
        settings = {"rate": 1e-4}
    older, before = answers(net, BATCH[0])[0], float(loss(net, BATCH).detach())
    try:
        batches = [BATCH, BATCH] if name == "random-search" else [BATCH]
        growth = made(**settings).grow(net, batches, loss, Budget(4), seeded())
    except FireflyError as error:
        assert name == "tiny" and "too writes" in str(error)
        return
    assert growth.kept
    torch.testing.assert_close(extract(net)(BATCH[0]), net(BATCH[0]), rtol=1e-9, atol=1e-12)
    assert tasks == 1 or torch.equal(answers(net, BATCH[0])[0], older)
    obtained = before - float(loss(net, BATCH).detach())
    if name == "gradmax":  # its promise is kept by the first step on the new weights
        assert abs(obtained) < 1e-12 and growth.gain > 0
    elif growth.gain:
        assert obtained == pytest.approx(growth.gain, rel=0.05)


def test_splitting_matrices_count_both_places() -> None:
    """Against the loss itself, at two eps."""
    gains = []
    for reach in (1e-3, 2e-3):
        net = twice()
        before = float(loss(net, BATCH).detach())
        growth = Splitting(reach=reach).grow(net, [BATCH], loss, Budget(1), seeded())
        gains.append((before - float(loss(net, BATCH).detach()), growth.gain))
    for obtained, promised in gains:
        assert promised > 0 and obtained == pytest.approx(promised, rel=0.01)


def test_a_space_written_twice_by_one_layer_stays_as_it_is() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(CHANNELS, 3, 1)
            self.both = nn.Conv2d(CHANNELS, 6, 1)
            self.mix = nn.Conv2d(6, 4, 1)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            one = torch.tanh(self.one(x))
            x = torch.tanh(self.mix(torch.cat([one, one], 1) + self.both(x)))
            logits: Tensor = self.head(x.mean((2, 3)))
            return logits

    torch.manual_seed(0)
    net = FireflyNet.from_module(Wide().double().eval(), images(2)).eval()
    widths = net.widths()
    growth = CRITERIA.get("firefly")(steps=2).grow(net, [BATCH], loss, Budget(3), seeded())
    assert set(growth.by_space()) == {"mix"} and net.widths()["one"] == widths["one"]


class Crelu(nn.Module):
    """A norm over a tensor joined with its negative (CReLU), as the only layer or with another."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(CHANNELS, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.mix = nn.Identity() if alone else nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        x = torch.tanh(self.mix(F.relu(self.norm(torch.cat([one, -one], 1)))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with another"])
@pytest.mark.parametrize("name", CRITERIA.names())
def test_a_space_that_stands_twice_in_a_norm_stays_as_it_is(name: str, alone: bool) -> None:
    torch.manual_seed(0)
    net = FireflyNet.from_module(Crelu(alone).double(), images(2))
    shake(net)
    before, widths = snapshot(net), net.widths()
    batches, criterion = [BATCH, BATCH], CRITERIA.get(name)()
    if alone:
        with pytest.raises(EditError, match=r"nothing to grow.*twice in a norm"):
            criterion.grow(net, batches, loss, Budget(2), seeded())
        assert_same_state(net, before)
        return
    growth = criterion.grow(net, batches, loss, Budget(2), seeded())
    assert set(growth.by_space()) == {"mix"} and net.widths()["one"] == widths["one"]
    torch.testing.assert_close(extract(net.eval())(BATCH[0]), net(BATCH[0]), rtol=1e-9, atol=1e-12)
