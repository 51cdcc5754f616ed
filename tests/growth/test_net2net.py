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
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.criterion import Growth
from firefly_cl.growth.net2net import Net2Net
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import replicate
from firefly_cl.network.rebuild import migrate


def copied(net: FireflyNet, noise: float, amount: int = 1000, seed: int = 0) -> Growth:
    def unseen(model: object, batch: object) -> Tensor:
        raise AssertionError("net2net has no need of the loss")

    return Net2Net(noise).grow(net, [], unseen, Budget(amount), seeded(seed))


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
