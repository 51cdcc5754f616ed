"""Gates under a budget: what stays costs the share that was asked for, whatever the network."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from growing_nets import VARIED, answers, images, net_of, two_tasks
from torch import Tensor

from firefly_cl.errors import ConfigurationError
from firefly_cl.gates.budget import BudgetedGates, OwnCost
from firefly_cl.gates.pruning import GatePruning, prunable_spaces, unit_prices
from firefly_cl.gates.tolerance import Tolerance
from firefly_cl.growth.budget import COSTS, own_cost
from firefly_cl.network import FireflyNet


def cross_entropy(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def drawn_batches(n: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [(images(6, seed=s), torch.arange(6) % 3) for s in range(n)]


def cost_of(net: FireflyNet, spaces: list[str], cost: str, widths: tuple[int, ...]) -> float:
    if cost == "units":
        return sum(widths)
    held = {name: net.spaces[name].width(net.current) for name in spaces}
    return own_cost(net, cost, None, {n: w - held[n] for n, w in zip(spaces, widths, strict=True)})


def gates_of(net: FireflyNet, cost: str = "parameters", share: float = 0.5) -> BudgetedGates:
    spaces = prunable_spaces(net)
    widths = {name: net.spaces[name].width(net.current) for name in spaces}
    return BudgetedGates(net, widths, unit_prices(net, spaces, cost), cost, share)


def expected_cost(net: FireflyNet, gates: BudgetedGates, cost: str) -> float:
    """What the open parts of units cost, by the sums of their gates."""
    return OwnCost(net, list(gates.s), cost)(
        np.array([float(z.detach().double().sum()) for z in gates.values().values()])
    )


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", VARIED)
def test_costs_of_all_widths_are_those_of_the_network(name: str, cost: str) -> None:
    net = two_tasks(name)
    spaces = prunable_spaces(net)
    polynomial = OwnCost(net, spaces, cost)
    for widths in itertools.islice(itertools.product((0, 1, 3), repeat=len(spaces)), 0, None, 7):
        assert polynomial(np.array(widths, float)) == pytest.approx(
            cost_of(net, spaces, cost, widths)
        )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("cost", COSTS)
def test_the_threshold_keeps_what_is_expected_at_the_share(cost: str, share: float) -> None:
    net = net_of("resnet9", width=16)
    gates = gates_of(net, cost, share)
    whole = OwnCost(net, list(gates.s), cost)(np.array([len(s) for s in gates.s.values()], float))
    draw = torch.Generator().manual_seed(0)
    for delta, spread in ((2.5, 0.0), (2.5, 0.1), (100.0, 0.1), (1e4, 0.1)):
        gates.delta = delta
        for s in gates.s.values():
            s.data.copy_(spread * torch.randn(s.shape, generator=draw, dtype=s.dtype))
        gates.settle()
        assert expected_cost(net, gates, cost) == pytest.approx(share * whole, rel=1e-3)


def test_dear_units_must_be_better_where_units_go_and_may_not_be_worse_where_they_stay() -> None:
    net = net_of("resnet9", width=16)
    spaces = prunable_spaces(net)
    prices = unit_prices(net, spaces, "parameters")
    dear, cheap = max(spaces, key=prices.__getitem__), min(spaces, key=prices.__getitem__)
    assert prices[dear] > prices[cheap]
    for share in (0.1, 0.9):
        gates = gates_of(net, "parameters", share)
        gates.settle()
        values = gates.values()
        assert float(values[dear].detach()[0]) < float(values[cheap].detach()[0])


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.8, 1.0])
def test_what_stays_costs_the_share_and_little_less(share: float, cost: str) -> None:
    net, x = net_of("resnet9", width=16), images(5)
    spaces = prunable_spaces(net)
    full = tuple(net.spaces[name].width(0) for name in spaces)
    whole = cost_of(net, spaces, cost, full)
    least = cost_of(net, spaces, cost, (1,) * len(spaces))
    unit = max(
        whole - cost_of(net, spaces, cost, (*full[:i], full[i] - 1, *full[i + 1 :]))
        for i in range(len(spaces))
    )
    pruning = GatePruning(cost=cost, epochs=3, learning_rate=0.1, share=share)
    pruned = pruning.prune(net, drawn_batches(), cross_entropy)
    left = cost_of(net, spaces, cost, tuple(pruned.kept[name] for name in spaces))
    assert left <= max(share * whole, least) + 1e-6
    assert left > share * whole - unit or share * whole <= least
    assert pruned.indecision < 1e-3
    assert {n: net.spaces[n].width(0) for n in spaces} == pruned.kept
    assert all(bool(torch.isfinite(a).all()) for a in answers(net, x))


def test_to_keep_all_takes_no_search() -> None:
    net = net_of("mlp")
    pruned = GatePruning(share=1.0).prune(net, [], cross_entropy)
    assert not pruned.edits and pruned.kept == {n: 4 for n in prunable_spaces(net)}


def test_equal_gates_are_not_torn_apart() -> None:
    """Units that nothing tells apart go or stay together: none is left undecided."""
    net = net_of("mlp", width=8)
    gates = gates_of(net, "units", 0.5)
    gates.delta = 1e4
    gates.decide()
    assert gates.indecision() < 1e-6
    assert all(float(z.detach().max()) < 1e-6 for z in gates.values().values())


def test_older_tasks_answer_bit_equally() -> None:
    net, x = two_tasks("resnet9"), images(5)
    older, _ = answers(net, x)
    GatePruning(cost="flops", epochs=2, share=0.5).prune(net, drawn_batches(), cross_entropy)
    assert torch.equal(answers(net, x)[0], older)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_shares_that_cannot_be_are_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match="share of gates is"):
        GatePruning(share=share)


def test_a_share_and_a_tolerance_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="leave the share out, with option prune-keep="):
        Tolerance().check(GatePruning(share=0.5))
