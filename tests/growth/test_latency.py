"""Growth charged by measured time: interpolation, what units cost, selection, the file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from growing_nets import VARIED, images, net_of, seeded, snapshot, two_tasks
from torch import Tensor

from firefly_cl.errors import BudgetTooSmall, ConfigurationError, FileError
from firefly_cl.growth.budget import Budget, growth_cost, own_cost, unit_cost
from firefly_cl.growth.criterion import Model
from firefly_cl.growth.firefly import Firefly
from firefly_cl.growth.latency import LatencyTable, LayerShape, Timings, measure
from firefly_cl.growth.uniform import Uniform
from firefly_cl.network import FireflyNet
from firefly_cl.network.deeper import deeper_places
from firefly_cl.network.edits import insert, widen
from firefly_cl.network.layers import GrowableLayer

SLOPE = 0.001


def loss(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


BATCH = (images(6, seed=3), torch.tensor([0, 1, 2, 0, 1, 2]))


def table_of(net: FireflyNet, dear: str = "") -> LatencyTable:
    """By hand: SLOPE milliseconds a pair of channels; a hundred times that where like `dear`."""
    table = LatencyTable()
    shapes = {
        node.name: LayerShape.of(node, net.node(node.inputs[0]))
        for node in net.nodes
        if node.kind in ("conv", "linear", "head")
    }
    for shape in shapes.values():
        slope = SLOPE * (100 if dear and shape == shapes[dear] else 1)
        columns = (1,) if shape.per_unit else (1, 64)
        times = tuple(tuple(slope * r * c for c in columns) for r in (1, 64))
        timings = Timings((1, 64), columns, times)
        table.timings[shape, torch.get_num_threads(), "float64"] = timings
    return table


def products(net: FireflyNet) -> float:
    """Rows times columns of the newest task's blocks, units of layers that work unit by unit."""
    total = 0
    for layer in net.layers.values():
        if isinstance(layer, GrowableLayer) and (block := layer.block(net.current)) is not None:
            if layer.per_unit:
                total += block.rows // layer.writes[0].repeat
            else:
                total += block.rows * (block.from_old.shape[1] + block.from_own.shape[1])
    return SLOPE * total


def test_between_and_beyond_the_widths_that_were_timed() -> None:
    timings = Timings((8, 16), (4, 8), ((1.0, 2.0), (3.0, 5.0)))
    assert [timings.at(8, 4), timings.at(16, 8), timings.at(8, 8)] == [1.0, 5.0, 2.0]
    assert timings.at(12, 4) == 2.0 and timings.at(12, 6) == 2.75
    assert timings.at(24, 4) == 5.0  # on along the last interval
    assert timings.at(24, 12) == 1.0 + 2 * 2.0 + 2 * 1.0 + 4 * 1.0
    assert timings.at(2, 1) == 1.0  # no cheaper than the narrowest
    assert timings.at(0, 8) == timings.at(8, 0) == 0.0
    alone = Timings((8, 16), (1,), ((1.0,), (3.0,)))
    assert [alone.at(12, 3), alone.at(20, 3)] == [2.0, 4.0]


def test_noise_makes_no_wider_layer_cheaper() -> None:
    rising = Timings.rising((1, 2, 4), (1, 2), [[3.0, 2.0], [1.0, 4.0], [2.0, 3.5]])
    assert rising.milliseconds == ((3.0, 3.0), (3.0, 4.0), (3.0, 4.0))


@pytest.mark.parametrize("name", [*VARIED, "vgg11"])
@pytest.mark.parametrize("tasks", [1, 2])
def test_units_cost_what_widening_adds(name: str, tasks: int) -> None:
    for space in (net_of if tasks == 1 else two_tasks)(name).growable_spaces():
        net = net_of(name) if tasks == 1 else two_tasks(name)
        table = table_of(net)
        before = products(net)
        assert own_cost(net, "latency", table) == pytest.approx(before, rel=1e-9)
        promised = growth_cost(net, {space: 3}, "latency", table)
        widen(net, space, 3, generator=seeded())
        assert products(net) - before == pytest.approx(promised, rel=1e-9)
        assert promised > 0


def test_inserted_layers_are_charged_too() -> None:
    net = net_of("resnet9")
    place = deeper_places(net)[0]
    grown = net_of("resnet9")
    insert(grown, place, 2, generator=seeded())
    table = table_of(grown)
    added = growth_cost(net, {place: 2}, "latency", table)
    assert products(grown) - products(net) == pytest.approx(added, rel=1e-9)


def test_a_plateau_still_costs_something() -> None:
    net = net_of("mlp")
    table = LatencyTable()
    for node in net.nodes:
        if node.kind in ("linear", "head"):
            shape = LayerShape.of(node, net.node(node.inputs[0]))
            flat = Timings((1, 64), (1, 64), ((1.0, 1.0), (1.0, 1.0)))
            table.timings[shape, torch.get_num_threads(), "float64"] = flat
    assert 0 < unit_cost(net, net.growable_spaces()[0], "latency", table) < 1e-5


def test_selection_keeps_to_milliseconds_and_leaves_a_slow_layer() -> None:
    def grown(table: LatencyTable, amount: float) -> tuple[dict[str, int], float]:
        net = net_of("vgg11")
        before = own_cost(net, "latency", table)
        budget = Budget(amount, "latency", latency=table)
        growth = Firefly(steps=1, score_batches=1).grow(net, [BATCH], loss, budget, seeded())
        return growth.by_space(), own_cost(net, "latency", table) - before

    net = net_of("vgg11")
    table = table_of(net)
    amount = 3 * max(unit_cost(net, s, "latency", table) for s in net.growable_spaces())
    plain, spent = grown(table, amount)
    assert plain and 0 < spent <= amount
    assert grown(table, amount) == (plain, spent)
    favourite = max(plain, key=plain.__getitem__)
    slow, spent = grown(table_of(net, net.producers(favourite)[0].name), amount)
    assert slow and favourite not in slow and 0 < spent <= amount


@pytest.mark.parametrize("criterion", [Firefly(steps=1), Uniform()])
def test_a_budget_too_small_says_milliseconds(criterion: Firefly | Uniform) -> None:
    net = net_of("mlp")
    before = snapshot(net)
    budget = Budget(1e-5, "latency", latency=table_of(net))
    with pytest.raises(BudgetTooSmall, match=r"1e-05 milliseconds buys no unit"):
        criterion.grow(net, [BATCH], loss, budget, seeded())
    assert snapshot(net).keys() == before.keys()


def test_budgets_in_latency_need_a_table_and_an_amount() -> None:
    with pytest.raises(ConfigurationError, match="needs a LatencyTable"):
        Budget(1.0, "latency")
    with pytest.raises(ConfigurationError, match="more than 0 milliseconds"):
        Budget(0.0, "latency", latency=LatencyTable())
    assert Budget(0.25, "latency", latency=LatencyTable()).amount == 0.25


@pytest.mark.parametrize("per_unit", [None, (1, 1), (2, 4)])
def test_what_is_measured_is_positive_and_grows(per_unit: tuple[int, int] | None) -> None:
    size, factor = (64, 2.0) if per_unit is None else (1024, 1.2)
    shape = LayerShape((3, 3), (1, 1), (1, 1), (1, 1), size, per_unit)
    timings = measure(shape, torch.float32)
    values = timings.milliseconds
    assert all(v > 0 for row in values for v in row)
    assert timings.at(256, 256) > factor * timings.at(8, 8)
    for narrow, wide in itertools.pairwise(values):
        assert all(a <= b for a, b in zip(narrow, wide, strict=True))
    assert measure(LayerShape(), torch.float32).at(256, 256) > 0


def test_a_layer_that_cannot_run_alone_is_named() -> None:
    with pytest.raises(ConfigurationError, match="cannot be timed"):
        measure(LayerShape((1, 9), (1, 1), (0, 0), (1, 1), 14), torch.float32)


def test_a_file_keeps_what_was_measured(tmp_path: Path) -> None:
    path, shape = tmp_path / "timings.json", LayerShape((1, 1), (1, 1), (0, 0), (1, 1), 1)
    table = LatencyTable.load(path)
    assert not table.timings and not path.exists()
    first = table.of(shape, torch.float32)
    assert table.of(shape, torch.float32) is first
    again = LatencyTable.load(path)
    assert again.timings == table.timings and again.digest() == table.digest()
    assert again.of(shape, torch.float32) == first  # not measured again
    again.of(LayerShape(), torch.float32)
    assert len(LatencyTable.load(path).timings) == 2
    assert {e["threads"] for e in json.loads(path.read_text())["timings"]} == {
        torch.get_num_threads()
    }


@pytest.mark.parametrize("damage", ["", "{}", '{"schema": 9}', '{"schema": 1, "timings": [{}]}'])
def test_a_file_of_something_else_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    path.write_text(damage)
    with pytest.raises(FileError, match=r"timings\.json"):
        LatencyTable.load(path)
