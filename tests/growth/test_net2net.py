"""Net2Net: copies of units share outgoing weights, and no function changes without noise."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from growing_nets import (
    NAMES,
    VARIED,
    answers,
    begin,
    close,
    images,
    net_of,
    seeded,
    snapshot,
    train_steps,
    two_tasks,
)
from torch import Tensor

from firefly_cl.errors import EditError, NothingToGrow
from firefly_cl.growth.budget import Budget, own_cost
from firefly_cl.growth.criterion import Growth
from firefly_cl.growth.net2net import Net2Net
from firefly_cl.network import FireflyNet
from firefly_cl.network.deeper import deeper_places
from firefly_cl.network.edits import replicate
from firefly_cl.network.rebuild import migrate


def copied(
    net: FireflyNet,
    noise: float,
    amount: int = 1000,
    seed: int = 0,
    depths: int = 0,
    cost: str = "units",
) -> Growth:
    def unseen(model: object, batch: object) -> Tensor:
        raise AssertionError("net2net has no need of the loss")

    return Net2Net(noise, depths).grow(net, [], unseen, Budget(amount, cost), seeded(seed))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_without_noise_no_function_changes(name: str, tasks: int, training: bool) -> None:
    net = net_of(name) if tasks == 1 else two_tasks(name)
    x, units = images(8), net.units()
    before = answers(net, x, training)
    growth = copied(net, 0.0)
    assert net.units() - units == len(growth.kept)
    assert len(growth.kept) == (4 if tasks == 1 else 2) * len(net.growable_spaces())
    assert close(answers(net, x, training), before)


def test_some_unit_is_copied_more_than_once() -> None:
    growth = copied(net_of("mlp", width=16), 0.0)
    assert max(Counter((c.space, c.unit) for c in growth.kept).values()) > 2


@pytest.mark.parametrize("name", VARIED)
def test_copies_share_the_outgoing_weights_equally(name: str) -> None:
    net = net_of(name)
    space = net.growable_spaces()[-1]
    head = net.consumers(space)[-1].name
    before = net.layers[head].block(0).from_own.detach().clone()  # type: ignore[union-attr,operator]
    replicate(net, space, torch.tensor([1, 3, 1]))
    after = net.layers[head].block(0).from_own  # type: ignore[union-attr,operator]
    for columns, share in (((0,), 1), ((1, 4, 6), 3), ((2,), 1), ((3, 5), 2)):
        for column in columns:
            torch.testing.assert_close(after[:, column], before[:, columns[0]] / share)


def test_the_noise_is_on_the_copies_rows_and_as_long_as_told() -> None:
    net = two_tasks("mobilenetv1")
    before = {k: v.clone() for k, v in snapshot(net).items()}
    growth = copied(net, 0.05, amount=1)
    (kept,) = growth.kept
    noise, length = 0.0, 0.0
    for node in net.producers(kept.space):
        for key in ("from_old", "from_own"):
            name = f"layers.{node.name}.blocks.1.{key}"
            after = net.state_dict()[name]
            assert torch.equal(after[:2], before[name])
            noise += float((after[2] - after[kept.unit]).square().sum())
            length += float(after[kept.unit].square().sum())
    assert (noise / length) ** 0.5 == pytest.approx(0.05)


def test_noise_moves_the_function_a_little() -> None:
    net = two_tasks("resnet9")
    x = images(8)
    before = answers(net, x)[1]
    copied(net, 1e-6)
    moved = (answers(net, x)[1] - before).abs().max()
    assert 0 < moved < 1e-3


def test_the_optimizer_follows_copies() -> None:
    net = two_tasks("grouped")
    x, y = images(12), torch.arange(12) % 4
    optimizer = train_steps(net, x, y, steps=2)
    for edit in copied(net, 0.01).edits:
        migrate(optimizer, edit)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in net.trainable()}
    train_steps(net, x, y, optimizer=optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_identity_layers_are_drawn_with_the_copies_and_train(name: str) -> None:
    net = two_tasks(name)
    places, spaces, units = deeper_places(net), len(net.growable_spaces()), net.units()
    x, y = images(96), torch.arange(96) % 4
    before = answers(net, x)
    optimizer = train_steps(net, x, y, steps=0)
    growth = copied(net, 0.0, depths=2)
    assert growth.by_kind() == {"copy": 2 * spaces, "deeper": 2 * len(places)}
    assert places and net.units() - units == len(growth.kept)
    after = answers(net, x)
    assert torch.equal(after[0], before[0])
    assert close(after, before)
    for edit in growth.edits:
        migrate(optimizer, edit)
    train_steps(net, x, y, optimizer=optimizer, steps=2)
    trained = answers(net, x)
    assert torch.equal(trained[0], before[0]) and not close(trained, before)
    for place in places:
        written = net.layers[f"{place}_deeper1_out"].block(1).from_own  # type: ignore[operator,union-attr]
        assert written.any()


def test_a_budget_is_shared_by_copies_and_layers() -> None:
    net = net_of("resnet9")
    before = own_cost(net, "parameters")
    growth = copied(net, 0.0, amount=3000, depths=4, cost="parameters")
    assert set(growth.by_kind()) == {"copy", "deeper"}
    assert 2000 < own_cost(net, "parameters") - before <= 3000


def test_a_task_without_units_has_nothing_to_copy() -> None:
    net = net_of("mlp")
    begin(net, widths=0)
    with pytest.raises(NothingToGrow, match="hidden_0"):
        copied(net, 0.0)


@pytest.mark.parametrize("units", [[], [4], [-1]])
def test_units_that_are_not_there_cannot_be_copied(units: list[int]) -> None:
    net = net_of("mlp")
    before = snapshot(net)
    with pytest.raises(EditError, match="it has 0 to 3"):
        replicate(net, "hidden_0", torch.tensor(units, dtype=torch.int64))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
