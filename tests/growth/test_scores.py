"""Invariant 6: a score is the slope of the loss along a candidate's path."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from growing_nets import CHANNELS, begin, images, seeded, shake
from torch import Tensor, nn

from firefly_cl.growth.budget import Candidate
from firefly_cl.growth.candidates import Candidates, propose, propose_layers
from firefly_cl.growth.commit import commit
from firefly_cl.growth.criterion import Model
from firefly_cl.growth.execution import CandidateExecution
from firefly_cl.growth.firefly import Firefly
from firefly_cl.network import FireflyNet
from firefly_cl.network.deeper import deeper_places
from firefly_cl.network.rows import own_channels

REACH = 1e-2


class Smooth(nn.Module):
    """Without kinks, so that a split's second derivative exists: every structure in one model."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(CHANNELS, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.branch = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.side = nn.Conv2d(4, 3, 1)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7)
        self.norm = nn.BatchNorm2d(7, affine=False)
        self.dense = nn.Linear(7 * 4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        x = x + torch.tanh(self.branch(x))
        x = torch.cat([x, F.silu(self.side(x))], 1)
        x = F.gelu(self.norm(self.depthwise(x)))
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        logits: Tensor = self.head(torch.tanh(self.dense(x)))
        return logits


@pytest.fixture(scope="module")
def smooth() -> FireflyNet:
    torch.manual_seed(0)
    model = Smooth().double()
    shake(model)
    net = FireflyNet.from_module(model.eval(), images(2))
    begin(net, widths=2)
    return net.eval()


BATCH = (images(16, seed=3), torch.arange(16) % 4)


def loss(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def scored(net: FireflyNet, candidates: Candidates) -> list[Candidate]:
    costs = dict.fromkeys(candidates, 1)
    return Firefly(reach=REACH).score(net, candidates, [BATCH], loss, costs)


def proposed(net: FireflyNet, news: int, copies: int, hidden: int, seed: int) -> Candidates:
    generator = seeded(seed)
    widths = propose(net, net.growable_spaces(), news, copies, generator)
    places = deeper_places(net) if hidden else []
    return {**widths, **propose_layers(net, places, hidden, generator)}


@torch.no_grad()
def with_gate(net: FireflyNet, candidates: Candidates, of: Candidate, value: float) -> float:
    """The loss when one gate has a value and all others are 0."""
    kinds = candidates[of.space].kinds()
    gate = candidates[of.space].gates()[list(kinds).index(of.kind)]
    at = list(kinds[of.kind]).index(of.unit)
    gate[at] = value
    found = float(loss(lambda x: CandidateExecution(net, candidates).run(x), BATCH))
    gate[at] = 0.0
    return found


@pytest.mark.parametrize("kind", ["split", "unlock", "new", "deeper"])
def test_a_score_predicts_the_change_along_the_whole_path(smooth: FireflyNet, kind: str) -> None:
    candidates = proposed(smooth, 2, 3, 2, seed=1)
    found = [c for c in scored(smooth, candidates) if c.kind == kind]
    where = deeper_places(smooth) if kind == "deeper" else smooth.growable_spaces()
    assert {c.space for c in found} == set(where)
    start = with_gate(smooth, candidates, found[0], 0.0)
    largest = max(abs(c.gain) for c in found)
    assert largest > 1e-8
    for candidate in found:
        end = with_gate(smooth, candidates, candidate, candidate.sign * REACH)
        tolerance = 0.1 * abs(candidate.gain) + 0.03 * largest
        assert start - end == pytest.approx(candidate.gain, abs=tolerance), candidate
        if kind == "split":  # even in its gate
            other = with_gate(smooth, candidates, candidate, -REACH)
            assert other == pytest.approx(end, abs=1e-12)
        else:
            assert candidate.gain >= 0


def test_splits_have_no_slope_at_0_but_have_one_along_their_path(smooth: FireflyNet) -> None:
    candidates = propose(smooth, smooth.growable_spaces(), 0, 0, seeded(1))
    gates = [space.split_gates.requires_grad_() for space in candidates.values()]
    value = loss(lambda x: CandidateExecution(smooth, candidates).run(x), BATCH)
    slopes = torch.autograd.grad(value, gates)
    assert all(slope.abs().max() < 1e-12 for slope in slopes)
    for gate in gates:
        gate.requires_grad_(False)
    assert max(abs(c.gain) for c in scored(smooth, candidates)) > 1e-8


def test_gradients_of_gates_agree_with_finite_differences(smooth: FireflyNet) -> None:
    candidates = proposed(smooth, 2, 2, 2, seed=2)
    generator = seeded(3)
    gates = [gate for space in candidates.values() for gate in space.gates()]
    for gate in gates:
        gate.copy_(0.2 * torch.rand(gate.shape, generator=generator) - 0.1)
        gate.requires_grad_()

    def value() -> Tensor:
        return loss(lambda x: CandidateExecution(smooth, candidates).run(x), BATCH)

    slopes = torch.autograd.grad(value(), gates)
    step = 1e-6
    with torch.no_grad():
        for gate, slope in zip(gates, slopes, strict=True):
            for i in range(len(gate)):
                gate[i] += step
                above = float(value())
                gate[i] -= 2 * step
                below = float(value())
                gate[i] += step
                assert (above - below) / (2 * step) == pytest.approx(float(slope[i]), abs=1e-7)


@pytest.mark.parametrize("kind", ["split", "unlock", "new", "deeper"])
def test_a_committed_candidate_has_the_effect_of_its_gate(smooth: FireflyNet, kind: str) -> None:
    candidates = proposed(smooth, 2, 3, 2, seed=1)
    for candidate in [c for c in scored(smooth, candidates) if c.kind == kind]:
        expected = with_gate(smooth, candidates, candidate, candidate.sign * REACH)
        start = with_gate(smooth, candidates, candidate, 0.0)
        net = copy.deepcopy(smooth)
        (edit,) = commit(net, candidates, [candidate], REACH)
        if kind in ("new", "deeper"):  # whose norms keep the unbiased variance
            for node in net.norms(edit.space):
                positions = len(BATCH[1]) * node.size
                newest = torch.tensor([net.spaces[edit.space].width(1) - 1])
                at = own_channels(net, node.layout, edit.space, newest)
                net.layers[node.name].block(1).running_var[at] *= (positions - 1) / positions
        with torch.no_grad():
            got = float(loss(net, BATCH))
        assert got - start == pytest.approx(expected - start, rel=1e-6, abs=1e-10), candidate
