"""Splitting matrices against autograd's Hessian of the loss of a network with a split unit."""

from __future__ import annotations

import copy
import math
from statistics import linear_regression
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from curved_nets import BATCH, OTHER, curved, loss
from growing_nets import VARIED, net_of, seeded, train_steps
from torch import Tensor, nn
from torch.func import functional_call

from firefly_cl.errors import ConfigurationError, EditError
from firefly_cl.growth.curvature import Curvature, UnitRows
from firefly_cl.growth.eigenvectors import RayleighSearch, exact_extremes, splitting_matrices
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import split
from firefly_cl.network.rows import own_channels


def hessian_of_split(net: FireflyNet, space: str, unit: int) -> Tensor:
    """Of the loss in the displacement of a unit's two halves, by autograd on the split network."""
    moved = copy.deepcopy(net)
    width = moved.spaces[space].width(moved.current)
    split(moved, space, torch.tensor([unit]))
    task, rows = moved.current, UnitRows(net, space)
    at = {
        node.name: [
            own_channels(moved, node.layout, space, torch.tensor([i])) for i in (unit, width)
        ]
        for node in moved.producers(space)
    }
    given = {name: p.detach() for name, p in moved.named_parameters()}

    def value(displacement: Tensor) -> Tensor:
        parameters = dict(given)
        for name, move in rows.unstack(displacement[None]).items():
            keys = [f"layers.{name}.blocks.{task}.{side}" for side in ("from_old", "from_own")]
            n_old = given[keys[0]].shape[1]
            # a column of the unit itself stands twice by now, each with half of its weight
            moves = move[:, :n_old], share(moved, name, space, unit, move[:, n_old:])
            up, down = at[name]
            for key, by in zip(keys, moves, strict=True):
                parameters[key] = given[key].index_add(0, up, by).index_add(0, down, -by)
        return loss(lambda x: functional_call(moved, parameters, (x,)), BATCH)

    start = torch.zeros(rows.length).double()
    found: Tensor = torch.autograd.functional.hessian(value, start)
    return found


def share(net: FireflyNet, name: str, space: str, unit: int, move: Tensor) -> Tensor:
    """Own columns of a displacement as they stand after the unit itself was split."""
    layer = net.layers[name]
    if layer.per_unit or all(s.space != space for s in layer.reads):
        return move
    assert [s.space for s in layer.reads] == [space] and layer.reads[0].repeat == 1
    half = move[:, unit : unit + 1] / 2
    return torch.cat([move[:, :unit], half, move[:, unit + 1 :], half], 1)


@pytest.mark.parametrize("tasks", [1, 2])
def test_splitting_matrices_are_hessians_of_split_networks(tasks: int) -> None:
    net = curved(tasks, pool=F.max_pool2d)
    spaces = net.growable_spaces()
    matrices = splitting_matrices([Curvature(net, spaces, BATCH, loss)], 1000)
    assert len(matrices) == 5
    for space, matrix in matrices.items():
        expected = hessian_of_split(net, space, 1)
        largest = float(expected.abs().max())
        assert largest > 1e-4, space
        assert (matrix[1] - expected).abs().max() < 1e-6 * min(1.0, largest), space


def test_a_matrix_is_the_mean_over_batches_and_over_calls_of_the_model() -> None:
    net = curved()
    spaces = net.growable_spaces()
    one, other = (Curvature(net, spaces, batch, loss) for batch in (BATCH, OTHER))

    def twice(model: Any, batch: Any) -> Tensor:
        return (loss(model, BATCH) + loss(model, OTHER)) / 2

    both = splitting_matrices([Curvature(net, spaces, None, twice)], 1000)
    mean = splitting_matrices([one, other], 1000)
    for space in spaces:
        torch.testing.assert_close(mean[space], both[space], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(mean[spaces[0]], splitting_matrices([one], 1000)[spaces[0]])


def softplus_bend(a: Tensor) -> Tensor:
    return 3 * torch.sigmoid(3 * a) * torch.sigmoid(-3 * a)


BENDS = {
    "relu": (nn.ReLU(), softplus_bend),
    "relu6": (nn.ReLU6(), lambda a: softplus_bend(a) - softplus_bend(a - 6)),
    "leaky": (nn.LeakyReLU(0.2), lambda a: 0.8 * softplus_bend(a)),
    "hardtanh": (nn.Hardtanh(-0.5, 2.0), lambda a: softplus_bend(a + 0.5) - softplus_bend(a - 2)),
    "hardsigmoid": (
        nn.Hardsigmoid(),
        lambda a: (softplus_bend(a + 3) - softplus_bend(a - 3)) / 6,
    ),
}


@pytest.mark.parametrize("label", BENDS)
def test_kinks_bend_as_a_softplus_while_slopes_stay(label: str) -> None:
    """S_i = E[dL/d sigma_i sigma''(a_i) x x^T], written out for the first of two hidden layers."""
    activation, bend = BENDS[label]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 3)
    model = nn.Sequential(layers[0], activation, layers[1], activation, layers[2]).double()
    x, y = 3 * torch.randn(40, 5, generator=seeded()).double(), torch.arange(40) % 3
    net = FireflyNet.from_module(model, x)
    space = net.growable_spaces()[0]
    with torch.no_grad():
        a = layers[0](x)
    hidden = activation(a).requires_grad_()
    value = F.cross_entropy(layers[2](activation(layers[1](hidden))), y)
    (slope,) = torch.autograd.grad(value, hidden)
    expected = torch.einsum("bi,bj,bk->ijk", slope * bend(a), x, x)
    found = splitting_matrices([Curvature(net, [space], (x, y), loss)], 10)[space]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_split_changes_the_loss_by_half_eps_squared_lambda(tasks: int) -> None:
    """The rest falls at least with eps^3 (it is even in eps: with eps^4)."""
    net = curved(tasks)
    spaces = net.growable_spaces()
    lowest, highest = exact_extremes([Curvature(net, spaces, BATCH, loss)], 1000)
    start = float(loss(net, BATCH).detach())
    sizes = [0.01, 0.02, 0.04]
    slopes = []
    for space in spaces:
        rows = UnitRows(net, space)
        for extreme in (lowest[space], highest[space]):
            curvature = float(extreme.values[1])
            vector = extreme.vectors[1:2]
            assert vector.norm() == pytest.approx(1.0)
            rest = []
            for eps in sizes:
                moved = copy.deepcopy(net)
                split(moved, space, torch.tensor([1]), rows.unstack(eps * vector))
                with torch.no_grad():
                    change = float(loss(moved, BATCH)) - start
                rest.append(abs(change - eps**2 / 2 * curvature))
            if abs(curvature) > 1e-3:
                assert rest[0] < 0.1 * 0.01**2 / 2 * abs(curvature), space
            if min(rest) > 1e-13:
                logs = [(math.log(e), math.log(r)) for e, r in zip(sizes, rest, strict=True)]
                slopes.append(linear_regression(*zip(*logs, strict=True)).slope)
    assert len(slopes) >= 8
    assert min(slopes) > 2.9, slopes


@pytest.mark.parametrize("name", ["curved", *VARIED])
def test_the_search_finds_extreme_curvatures_within_5_percent(name: str) -> None:
    """Of every unit that is clearly curved, from several starts."""
    net = curved() if name == "curved" else net_of(name, width=4)
    train_steps(net, *BATCH, steps=3)
    spaces = net.growable_spaces()
    curvatures = [Curvature(net, spaces, batch, loss) for batch in (BATCH, OTHER)]
    exact = exact_extremes(curvatures, 1000)
    compared = 0
    for seed in range(3):
        found = RayleighSearch().extremes(curvatures, seeded(seed))
        for sign, ours, best in zip((1, -1), found, exact, strict=True):
            clear = 0.01 * max(float(e.values.abs().max()) for e in best.values())
            for space in spaces:
                one, other = sign * ours[space].values, sign * best[space].values
                assert bool((one > other - 1e-9).all()), "no quotient is beyond the eigenvalue"
                at = other < -clear
                assert bool((one[at] < 0.95 * other[at]).all()), (space, sign, one / other)
                lengths = ours[space].vectors[at].norm(dim=1)
                torch.testing.assert_close(lengths, torch.ones_like(lengths))
                compared += int(at.sum())
    assert compared >= 30


def test_a_search_of_more_steps_than_inputs_ends_at_the_eigenvectors() -> None:
    """The Krylov space is whole before the last step: 2 inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    net = FireflyNet.from_module(model, x)
    curvatures = [Curvature(net, net.growable_spaces(), (x, torch.arange(4) % 3), loss)]
    for found, exact in zip(
        RayleighSearch().extremes(curvatures, seeded()),
        exact_extremes(curvatures, 10),
        strict=True,
    ):
        for space in net.growable_spaces():
            torch.testing.assert_close(found[space].values, exact[space].values)
            cosine = (found[space].vectors * exact[space].vectors).sum(1).abs()
            torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_looking_at_curvature_leaves_the_network_alone() -> None:
    net = curved(2).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    exact_extremes([Curvature(net, net.growable_spaces(), BATCH, loss)], 1000)
    assert net.training and all(p.grad is None for p in net.parameters())
    for key, value in net.state_dict().items():
        assert torch.equal(before[key], value)


def test_units_of_too_many_inputs_are_an_error_that_names_the_layer() -> None:
    net = net_of("resnet9")
    with pytest.raises(EditError, match=r"has \d+ inputs.*fast-splitting"):
        splitting_matrices([Curvature(net, net.growable_spaces(), BATCH, loss)], 20)


def test_a_search_without_steps_is_an_error() -> None:
    with pytest.raises(ConfigurationError):
        RayleighSearch(steps=0)


def test_vectors_go_to_rows_and_back() -> None:
    net = curved(2)
    for space in net.growable_spaces():
        rows = UnitRows(net, space)
        vectors = torch.randn(rows.units, rows.length, generator=seeded()).double()
        whole = {
            name: (torch.zeros_like(block.from_old), torch.zeros_like(block.from_own))
            for name, block in rows.blocks.items()
        }
        for name, values in rows.unstack(vectors).items():
            old, own = whole[name]
            layout = net.node(name).layout
            at = own_channels(net, layout, space, torch.arange(rows.units))
            old[at], own[at] = values[:, : old.shape[1]], values[:, old.shape[1] :]
        assert torch.equal(rows.stack(whole), vectors)
