"""Units divided into copies of any share: functions stay, and what follows knows the shares."""

from __future__ import annotations

import copy

import pytest
import torch
from growing_nets import (
    VARIED,
    answers,
    assert_same_state,
    close,
    images,
    net_of,
    seeded,
    snapshot,
    train_steps,
    two_tasks,
)

from firefly_cl.errors import EditError
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import divide
from firefly_cl.network.rebuild import migrate

UNITS = torch.tensor([1, 0, 1, 0, 1])
SHARES = torch.tensor([2.0, 0.3, -0.5, 0.7, -0.5])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", VARIED)
def test_dividing_keeps_every_function(name: str, training: bool) -> None:
    net = two_tasks(name)
    x = images()
    before = answers(net, x, training)
    for space in net.growable_spaces():
        divide(net, space, UNITS, SHARES)
        assert net.spaces[space].width(1) == 5
    assert close(before, answers(net, x, training))


def test_copies_stand_where_they_are_said_to_with_their_shares_and_offsets() -> None:
    net = net_of("mlp")
    space = net.growable_spaces()[1]
    (producer,), (consumer,) = net.producers(space), net.consumers(space)
    rows, columns = (net.layers[node.name].block(0).from_own for node in (producer, consumer))
    offsets = torch.randn(5, rows.shape[1], generator=seeded()).double()
    edit = divide(net, space, UNITS, SHARES, {producer.name: offsets})
    after, wide = (net.layers[node.name].block(0).from_own for node in (producer, consumer))
    assert edit.units.tolist() == [0, 1, 2, 3, 1, 0, 1]
    for copied, (at, unit) in enumerate(((1, 1), (0, 0), (4, 1), (5, 0), (6, 1))):
        torch.testing.assert_close(after[at], rows[unit] + offsets[copied])
        torch.testing.assert_close(wide[:, at], SHARES[copied].double() * columns[:, unit])
    assert torch.equal(after[2:4], rows[2:4]) and torch.equal(wide[:, 2:4], columns[:, 2:4])
    layer = net.layers[consumer.name]
    assert torch.equal(edit.carry_columns(layer, columns.detach()), wide)


@pytest.mark.parametrize("name", VARIED)
def test_offsets_made_before_an_edit_act_after_it_as_they_would_have(name: str) -> None:
    """Rows over a divided unit: the change of a reader's rows has the same effect."""
    net = two_tasks(name)
    x = images()
    for first, second in ((0, 1), (-2, -1)):
        spaces = net.growable_spaces()
        one, other = spaces[first], spaces[second]
        offsets = {}
        for node in net.producers(other):
            block = net.layers[node.name].block(1)
            repeat = sum(s.repeat for s in node.layout if s.space == other)
            columns = block.from_old.shape[1] + block.from_own.shape[1]
            shape = (2 * repeat, columns, *block.from_own.shape[2:])
            offsets[node.name] = torch.randn(shape, generator=seeded()).double()
        units, shares = torch.tensor([0, 0]), torch.tensor([1.5, -0.5])
        alone, after = copy.deepcopy(net), copy.deepcopy(net)
        divide(alone, other, units, shares, offsets)
        edit = divide(after, one, UNITS, SHARES)
        carried = {k: edit.carry_incoming(after.layers[k], v) for k, v in offsets.items()}
        divide(after, other, units, shares, carried)
        assert close(answers(alone, x), answers(after, x))
        assert not close(answers(alone, x), answers(net, x))


def test_optimizer_state_follows_and_training_goes_on() -> None:
    net = two_tasks("resnet9")
    x, y = images(8), torch.arange(8) % 4
    optimizer = train_steps(net, x, y, steps=2)
    frozen = answers(net, x)[0]
    for space in net.growable_spaces():
        migrate(optimizer, divide(net, space, UNITS, SHARES))
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in net.trainable()}
    train_steps(net, x, y, optimizer=optimizer)
    assert torch.equal(answers(net, x)[0], frozen)


def empty(net: FireflyNet, space: str) -> None:
    divide(net, space, UNITS[:0], SHARES[:0])


BAD = {
    "nothing": empty,
    "past the end": lambda n, s: divide(n, s, torch.tensor([2, 2]), torch.tensor([0.5, 0.5])),
    "below 0": lambda n, s: divide(n, s, torch.tensor([-1, -1]), torch.tensor([0.5, 0.5])),
    "as many shares": lambda n, s: divide(n, s, UNITS, SHARES[:4]),
    "sum to": lambda n, s: divide(n, s, UNITS, SHARES.abs()),
    "nan": lambda n, s: divide(n, s, torch.tensor([0, 0]), torch.tensor([float("nan"), 1.0])),
    "shape": lambda n, s: divide(n, s, UNITS, SHARES, {n.producers(s)[0].name: torch.zeros(2, 2)}),
    "no layer": lambda n, s: divide(n, s, UNITS, SHARES, {"nowhere": torch.zeros(2, 2)}),
}


@pytest.mark.parametrize("label", BAD)
def test_a_bad_division_is_refused_and_changes_nothing(label: str) -> None:
    net = two_tasks("resnet9")
    before, widths = snapshot(net), net.widths()
    with pytest.raises(EditError):
        BAD[label](net, net.growable_spaces()[0])
    assert_same_state(net, before)
    assert net.widths() == widths
