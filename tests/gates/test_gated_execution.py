"""Gates in the execution: 1 changes nothing, 0 is as good as pruned, s has the right gradient."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from growing_nets import (
    NAMES,
    VARIED,
    assert_same_state,
    images,
    net_of,
    seeded,
    shake,
    snapshot,
    some,
    two_tasks,
)
from torch import Tensor, nn

from firefly_cl.errors import EditError
from firefly_cl.gates.execution import GatedExecution, gated_nodes
from firefly_cl.gates.scaled_sigmoid import Gates, annealing, own_gates
from firefly_cl.network import FireflyNet, register_map
from firefly_cl.network.edits import insert, prune, split

NETS = [*((name, 1) for name in NAMES), *((name, 2) for name in VARIED)]


def gates_of(net: FireflyNet, kept: Mapping[str, Tensor] | None = None) -> Gates:
    """All gates at exactly 1, or those of the units `kept` and the others at exactly 0."""
    gates = own_gates(net, net.growable_spaces())
    gates.delta = 1e4
    with torch.no_grad():
        for name, s in gates.s.items():
            s.fill_(1.0 if kept is None else -1.0)
            if kept is not None:
                s[kept[name]] = 1.0
    assert all(set(z.tolist()) <= {0.0, 1.0} for z in gates.values().values())
    return gates


@torch.no_grad()
def ran(net: FireflyNet, gates: Gates | None, x: Tensor, training: bool) -> Tensor:
    """Logits of the newest task with or without gates; the network is left as it was."""
    before = snapshot(net)
    net.train(training)
    out = net(x) if gates is None else GatedExecution(net, gates).run(x)
    net.eval()
    net.load_state_dict(before)
    return out


def part_of(net: FireflyNet, seed: int = 3) -> dict[str, Tensor]:
    """A random half of the newest task's units in every space, at least one."""
    generator = seeded(seed)
    return {
        name: some(net.spaces[name].width(net.current), 0.5, generator, least=1)
        for name in net.growable_spaces()
    }


@cache
def first_or_second(name: str, tasks: int) -> FireflyNet:
    return net_of(name) if tasks == 1 else two_tasks(name)


@pytest.mark.parametrize(("name", "tasks"), NETS)
def test_open_gates_change_nothing(name: str, tasks: int) -> None:
    net, x = first_or_second(name, tasks), images(4)
    for training in (False, True):
        open_gates = ran(net, gates_of(net), x, training)
        assert torch.equal(open_gates, ran(net, None, x, training))


@pytest.mark.parametrize(("name", "tasks"), NETS)
def test_a_closed_gate_is_a_pruned_unit(name: str, tasks: int) -> None:
    net, x = first_or_second(name, tasks), images(4)
    kept, smaller = part_of(net), deepcopy(net)
    for space, units in kept.items():
        prune(smaller, space, units)
    for training in (False, True):
        gated = ran(net, gates_of(net, kept), x, training)
        assert torch.allclose(gated, ran(smaller, None, x, training), rtol=1e-9, atol=1e-10)
        assert not torch.allclose(gated, ran(net, None, x, training), rtol=1e-3, atol=1e-3)


def test_a_closed_gate_is_a_pruned_unit_of_an_inserted_layer() -> None:
    net, x = net_of("resnet9"), images(4)
    place = next(n.name for n in net.nodes if n.kind == "add")
    edit = insert(net, place, 4, outgoing=None, generator=seeded())
    hidden = edit.space
    with torch.no_grad():
        for node in net.consumers(hidden):
            block = net.layers[node.name].block(0)  # type: ignore[union-attr, operator]
            block.from_own.normal_(generator=seeded(8))
    shake(net, 9)
    kept = {n: torch.arange(net.spaces[n].width(0)) for n in net.growable_spaces()}
    kept[hidden] = torch.tensor([1])
    kept[net.node(place).layout[0].space] = torch.tensor([0, 2])
    gated = ran(net, gates_of(net, kept), x, False)
    for space, units in kept.items():
        prune(net, space, units)
    assert torch.allclose(gated, ran(net, None, x, False), rtol=1e-9, atol=1e-10)


class Loud(nn.Module):
    """Activations that answer something to nothing, norms in odd places, a fork before a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.second = nn.Conv2d(5, 5, 3, padding=1)
        self.late = nn.BatchNorm2d(5)
        self.head = nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.first(x))
        fork = self.second(x)
        x = F.softplus(self.norm(fork)) + fork
        x = F.max_pool2d(self.late(F.hardsigmoid(x)), 2, padding=0)
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def test_a_closed_gate_is_a_pruned_unit_behind_loud_activations() -> None:
    torch.manual_seed(0)
    model = Loud().double()
    shake(model)
    net, x = FireflyNet.from_module(model.eval(), images(2)), images(4)
    kept = part_of(net)
    gated = ran(net, gates_of(net, kept), x, False)
    for space, units in kept.items():
        prune(net, space, units)
    assert torch.allclose(gated, ran(net, None, x, False), rtol=1e-9, atol=1e-10)


def test_gates_stand_between_norm_and_activation() -> None:
    net = net_of("mlp-bn")
    gated = gated_nodes(net, net.growable_spaces())
    assert {net.node(name).kind for name in gated} == {"norm"}
    plain = net_of("mlp")
    assert {plain.node(n).kind for n in gated_nodes(plain, plain.growable_spaces())} == {"linear"}


def test_a_map_of_somebody_is_gated_behind() -> None:
    def shifted(x: Tensor) -> Tensor:
        return x + 1.0

    register_map("shifted for gates", shifted)
    net = net_of("mlp")
    position = next(i for i, n in enumerate(net.nodes) if n.kind == "map")
    node = net.nodes[position]
    attributes = {"operation": "shifted for gates"}
    net.nodes[position] = type(node)(
        node.name, node.kind, node.inputs, node.layout, attributes, node.size, node.flat
    )
    net.refresh()
    assert node.name in gated_nodes(net, net.growable_spaces())


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("name", VARIED)
def test_the_gradient_of_s_is_that_of_finite_differences(name: str, tasks: int) -> None:
    net, x = (net_of(name) if tasks == 1 else two_tasks(name)), images(6)
    y = torch.arange(6) % 3
    gates = own_gates(net, net.growable_spaces())
    gates.delta = 2.5
    generator = seeded(4)
    with torch.no_grad():
        for s in gates.s.values():
            s.copy_(torch.randn(s.shape, generator=generator))

    def loss() -> Tensor:
        return F.cross_entropy(GatedExecution(net, gates).run(x), y)

    found = torch.autograd.grad(loss(), list(gates.s.values()))
    assert sum(float(g.abs().sum()) for g in found) > 1e-4
    with torch.no_grad():
        for s, gradient in zip(gates.s.values(), found, strict=True):
            unit, step = int(gradient.abs().argmax()), 1e-6
            ends = []
            for shift in (step, -step):
                s[unit] += shift
                ends.append(float(loss()))
                s[unit] -= shift
            slope = (ends[0] - ends[1]) / (2 * step)
            assert slope == pytest.approx(float(gradient[unit]), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("name", VARIED)
def test_norms_by_the_batch_are_those_of_training_and_record_nothing(name: str, tasks: int) -> None:
    net, x = first_or_second(name, tasks), images(4)
    before = snapshot(net)
    with torch.no_grad():
        found = GatedExecution(net, gates_of(net), by_batch=True).run(x)
    assert_same_state(net, before)
    assert torch.allclose(found, ran(net, None, x, True), rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_half_open_gates_leave_a_chain_of_norms_what_it_was() -> None:
    net, x = net_of("mlp-bn"), images(6)
    for node in net.nodes:
        if node.kind == "norm":
            net.layers[node.name].eps = 1e-12  # type: ignore[assignment]
    head = net.layers[next(n.name for n in net.nodes if n.kind == "head")]
    bias = head.block(0).bias  # type: ignore[union-attr, operator]
    half = GatedExecution(net, own_gates(net, net.growable_spaces()), by_batch=True).run(x)
    whole = GatedExecution(net, gates_of(net), by_batch=True).run(x)
    assert torch.allclose(half - bias, (whole - bias) / 2, rtol=1e-6, atol=1e-8)


def test_gates_follow_the_units_that_there_are() -> None:
    net = net_of("mlp")
    split(net, net.growable_spaces()[0], torch.tensor([0]))
    assert [len(s) for s in own_gates(net, net.growable_spaces()).s.values()] == [5, 4]


def test_inputs_have_no_gates() -> None:
    net = net_of("mlp")
    fixed = next(name for name, space in net.spaces.items() if space.fixed)
    with pytest.raises(EditError, match="cannot have gates: choose from"):
        own_gates(net, [fixed])


def test_the_scale_grows_as_published() -> None:
    published = [10 ** (0.4 * (epoch + 1)) for epoch in range(10)]
    assert annealing(10**0.4, 1e4, 10) == pytest.approx(published)
    assert annealing(10**0.4, 1e4, 1) == [1e4]
