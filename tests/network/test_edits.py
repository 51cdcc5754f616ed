"""Invariant 1: an edit at eps = 0 leaves every task's function as it was, in both modes."""

from __future__ import annotations

import copy

import pytest
import torch
from growing_nets import (
    CHANNELS,
    NAMES,
    VARIED,
    answers,
    assert_same_state,
    begin,
    close,
    images,
    net_of,
    part_reads,
    seeded,
    snapshot,
    some,
    train_steps,
    two_tasks,
    unlock_on,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from firefly_cl.errors import EditError, SpaceFixed
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.criterion import open_spaces
from firefly_cl.network import FireflyNet, extract, floats
from firefly_cl.network.edits import insert, prune, split, unlock, widen
from firefly_cl.network.rows import own_block

Edits = list[tuple[str, int, int]]


def insertable(net: FireflyNet) -> list[str]:
    own = net.owned_units(net.current)
    return [
        node.name
        for node in net.nodes
        if node.layout
        and node.kind != "input"
        and not any(net.spaces[s.space].fixed for s in node.layout)
        and any(len(own[s.space]) for s in node.layout)
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_every_edit_in_every_space_keeps_every_function(name: str, training: bool) -> None:
    net = two_tasks(name)
    x = images()
    before, size = answers(net, x, training), floats(net)
    edits = {
        "split": lambda space: split(net, space, torch.tensor([1, 0])),
        "widen": lambda space: widen(net, space, 2, generator=seeded()),
        "unlock": lambda space: unlock_on(net, x, space, torch.tensor([0, 3])),
    }
    for kind, edit in edits.items():
        for space in net.growable_spaces():
            edit(space)
        assert close(before, answers(net, x, training)), kind
    assert {width[1] for width in net.widths().values()} == {2 + 2 + 2 + 2}
    for node in insertable(net)[::3]:
        widen(net, insert(net, node, 2, generator=seeded()).space, 1, generator=seeded())
    assert close(before, answers(net, x, training)), "insert"
    assert floats(net) > size


@pytest.mark.parametrize("name", VARIED)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_edits_keep_functions_in_float32(name: str, training: bool) -> None:
    net = two_tasks(name, dtype=torch.float32)
    x = images(dtype=torch.float32)
    before = answers(net, x, training)
    for space in net.growable_spaces():
        split(net, space, torch.tensor([0]))
        unlock_on(net, x, space, torch.tensor([1]))
        widen(net, space, 1, generator=seeded())
    insert(net, insertable(net)[0], 2, generator=seeded())
    assert close(before, answers(net, x, training))


@pytest.mark.parametrize("name", VARIED)
def test_split_with_offsets_moves_the_halves_apart_and_keeps_their_mean(name: str) -> None:
    net = two_tasks(name)
    x = images()
    before = answers(net, x)
    for space in net.growable_spaces()[::2]:
        moved, kept = copy.deepcopy(net), copy.deepcopy(net)
        offsets = {}
        for node in net.producers(space):
            block = net.layers[node.name].block(1)
            shape = list(block.from_own.shape)
            repeat = sum(s.repeat for s in node.layout if s.space == space)
            shape[0], shape[1] = repeat, shape[1] + block.from_old.shape[1]
            offsets[node.name] = 1e-3 * torch.randn(shape, generator=seeded()).double()
        split(moved, space, torch.tensor([1]), offsets)
        split(kept, space, torch.tensor([1]))
        assert torch.equal(answers(moved, x)[0], before[0])
        change = (answers(moved, x)[1] - before[1]).abs().max()
        assert change < 1e-3  # first-order changes of the halves cancel
        for node in net.producers(space):
            one, other = (n.layers[node.name].block(1) for n in (moved, kept))
            whole = torch.cat([one.from_old, one.from_own], 1)
            assert not torch.equal(whole, torch.cat([other.from_old, other.from_own], 1))
            torch.testing.assert_close(
                whole.sum(0),
                torch.cat([other.from_old, other.from_own], 1).sum(0),
            )


def apply_random_edit(net: FireflyNet, x: torch.Tensor, kind: str, where: int, seed: int) -> None:
    """One edit of a kind at some place, if it is possible there; none changes any function."""
    generator = seeded(seed)
    spaces = net.growable_spaces()
    space = spaces[where % len(spaces)]
    width = net.spaces[space].width(net.current)
    if kind == "widen":
        widen(net, space, 1 + seed % 3, generator=generator)
    elif kind == "widen and prune":
        widen(net, space, 1 + seed % 3, generator=generator)
        if width:
            prune(net, space, torch.arange(width))
    elif kind == "split" and width:
        split(net, space, torch.randperm(width, generator=generator)[: 1 + seed % width])
    elif kind == "unlock":
        units = net.tasks[-1].reads[space]
        try:
            if len(units):
                unlock_on(net, x, space, units[some(len(units), 0.5, generator, least=1)])
        except EditError as error:
            assert "does not read everything" in str(error)
    elif kind == "insert" and insertable(net):
        places = insertable(net)
        hidden = insert(net, places[where % len(places)], 1 + seed % 2, generator=generator).space
        widen(net, hidden, 1, generator=generator)
    elif kind == "begin" and len(net.tasks) < 4:
        # an own unit in every space keeps each layer of the task with something to read
        begin(net, 2 + seed % 3, 1 + seed % 2, part_reads(net, 0.7, generator), seed)


KINDS = ("widen", "widen and prune", "split", "unlock", "insert", "begin")
SEQUENCES = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 30), st.integers(0, 1000)),
    min_size=2,
    max_size=7,
)


@pytest.mark.parametrize("name", VARIED)
@given(edits=SEQUENCES, training=st.booleans())
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_any_sequence_of_edits_keeps_every_function(
    name: str, edits: Edits, training: bool
) -> None:
    # the long models have the same parts many times over
    net = net_of(name, width=4)
    begin(net)
    x = images(6)
    before = answers(net, x, training)
    for kind, where, seed in edits:
        # to freeze a task ends its use of batch statistics: a function is kept in evaluation
        if kind == "begin":
            before = answers(net, x)
        apply_random_edit(net, x, kind, where, seed)
        after = answers(net, x, training and kind != "begin")
        assert close(before, after[: len(before)]), (kind, where, seed)
        before = answers(net, x, training)


@pytest.mark.parametrize("name", VARIED)
def test_edits_after_training_keep_what_was_learnt(name: str) -> None:
    net = two_tasks(name)
    x = images(8)
    train_steps(net, x, torch.arange(8) % 4)
    before = answers(net, x)
    for space in net.growable_spaces():
        unlock(net, space, torch.tensor([2]))
        split(net, space, torch.tensor([0]))
    assert close(before, answers(net, x))
    train_steps(net, x, torch.arange(8) % 4)
    after = answers(net, x)
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1])


def test_pruning_takes_out_exactly_what_the_unit_contributed() -> None:
    net = two_tasks("mlp")
    x = images()
    space = net.growable_spaces()[-1]
    (head,) = net.consumers(space)
    block = net.layers[head.name].block(1)
    with torch.no_grad():
        silenced = copy.deepcopy(net)
        silenced.layers[head.name].block(1).from_own[:, 0] = 0.0
    prune(net, space, torch.tensor([False, True]))
    assert net.spaces[space].width(1) == 1
    assert block.from_own.shape[1] == 1
    assert close(answers(silenced, x), answers(net, x))


def test_all_own_units_of_a_space_can_go_while_older_ones_are_read() -> None:
    net = two_tasks("resnet9")
    x = images()
    before = answers(net, x)
    for space in net.growable_spaces():
        prune(net, space, torch.zeros(2, dtype=torch.bool))
    after = answers(net, x)
    assert torch.equal(before[0], after[0])
    assert set(net.widths()[net.growable_spaces()[0]]) == {4, 0}
    widen(net, net.growable_spaces()[2], 2, generator=seeded())
    assert close(after, answers(net, x))


BAD_EDITS = {
    "unknown space": lambda n, s: widen(n, "nowhere", 1),
    "no units": lambda n, s: widen(n, s, 0),
    "negative": lambda n, s: widen(n, s, -2),
    "incoming shape": lambda n, s: widen(
        n, s, 1, incoming={n.producers(s)[0].name: torch.zeros(2, 2)}
    ),
    "incoming of a layer elsewhere": lambda n, s: widen(
        n, s, 1, incoming={"head": torch.zeros(1, 1)}
    ),
    "outgoing shape": lambda n, s: widen(
        n, s, 1, outgoing={n.consumers(s)[0].name: torch.zeros(2, 2)}
    ),
    "outgoing of a layer elsewhere": lambda n, s: widen(
        n, s, 1, outgoing={"nowhere": torch.zeros(1, 1)}
    ),
    "split nothing": lambda n, s: split(n, s, torch.tensor([], dtype=torch.int64)),
    "split past the end": lambda n, s: split(n, s, torch.tensor([2])),
    "split below 0": lambda n, s: split(n, s, torch.tensor([-1])),
    "split twice": lambda n, s: split(n, s, torch.tensor([0, 0])),
    "split offset shape": lambda n, s: split(
        n, s, torch.tensor([0]), {n.producers(s)[0].name: torch.zeros(3, 3)}
    ),
    "split offset of no layer": lambda n, s: split(
        n, s, torch.tensor([0]), {"nowhere": torch.zeros(3, 3)}
    ),
    "split offset of another space": lambda n, s: split(
        n, s, torch.tensor([0]), {n.producers(n.growable_spaces()[1])[0].name: torch.zeros(1, 6)}
    ),
    "unlock nothing": lambda n, s: unlock(n, s, torch.tensor([], dtype=torch.int64)),
    "unlock an own unit": lambda n, s: unlock(n, s, torch.tensor([4])),
    "unlock twice": lambda n, s: unlock(n, s, torch.tensor([1, 1])),
    "unlock offset shape": lambda n, s: unlock(
        n, s, torch.tensor([0]), {n.producers(s)[0].name: torch.zeros(3, 3)}
    ),
    "keep past the end": lambda n, s: prune(n, s, torch.tensor([0, 5])),
    "keep below 0": lambda n, s: prune(n, s, torch.tensor([-1])),
    "keep twice": lambda n, s: prune(n, s, torch.tensor([0, 0])),
    "mask of another length": lambda n, s: prune(n, s, torch.tensor([True])),
    "insert after nothing": lambda n, s: insert(n, "nowhere", 2),
    "insert no units": lambda n, s: insert(n, s, 0),
    "insert after the input": lambda n, s: insert(n, "x", 2),
    "insert after the head": lambda n, s: insert(n, "head", 2),
    "insert an even kernel": lambda n, s: insert(n, s, 2, kernel=4),
    "insert an unknown activation": lambda n, s: insert(n, s, 2, activation="no such"),
}


@pytest.mark.parametrize("label", BAD_EDITS)
@pytest.mark.parametrize("name", ["mlp-bn", "resnet9"])
def test_a_bad_edit_is_refused_and_changes_nothing(name: str, label: str) -> None:
    net = two_tasks(name)
    if "kernel" in label and name == "mlp-bn":
        pytest.skip("a linear layer has no kernel")
    before, widths, nodes = snapshot(net), net.widths(), list(net.nodes)
    with pytest.raises(EditError) as caught:
        BAD_EDITS[label](net, net.growable_spaces()[0])
    assert "\n" not in str(caught.value) and len(str(caught.value)) > 20
    assert_same_state(net, before)
    assert net.widths() == widths and net.nodes == nodes


@pytest.mark.parametrize("edit", ["widen", "split", "unlock", "prune"])
def test_the_input_can_neither_grow_nor_shrink(edit: str) -> None:
    net = two_tasks("resnet9")
    (fixed,) = (name for name, space in net.spaces.items() if space.fixed)
    units = torch.tensor([0])
    calls = {
        "widen": lambda: widen(net, fixed, 1),
        "split": lambda: split(net, fixed, units),
        "unlock": lambda: unlock(net, fixed, units),
        "prune": lambda: prune(net, fixed, units),
    }
    before = snapshot(net)
    with pytest.raises(SpaceFixed, match="input"):
        calls[edit]()
    assert_same_state(net, before)


@pytest.mark.parametrize("edit", ["widen", "split", "unlock", "prune", "insert"])
def test_a_frozen_task_cannot_be_edited(edit: str) -> None:
    net = two_tasks("resnet9")
    space, units = net.growable_spaces()[0], torch.tensor([0])
    net.freeze()
    before = snapshot(net)
    calls = {
        "widen": lambda: widen(net, space, 1),
        "split": lambda: split(net, space, units),
        "unlock": lambda: unlock(net, space, units),
        "prune": lambda: prune(net, space, units),
        "insert": lambda: insert(net, space, 1),
    }
    with pytest.raises(EditError, match="frozen: begin a task"):
        calls[edit]()
    assert_same_state(net, before)


def test_units_whose_rows_would_read_nothing_are_refused() -> None:
    net = net_of("mlp")
    first, second = net.growable_spaces()
    begin(net, widths=0, reads={first: torch.arange(0), second: torch.arange(2)})
    before = snapshot(net)
    with pytest.raises(EditError, match="would read no unit"):
        widen(net, second, 1)
    assert_same_state(net, before)
    assert set(open_spaces(net, Budget(3))) == {first}
    widen(net, first, 1)
    widen(net, second, 1)
    assert close([extract(net)(images())], answers(net, images())[1:])


def test_one_part_of_a_join_can_lose_all_its_units() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (nn.Conv2d(CHANNELS, 3, 3, padding=1) for _ in range(2))
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.cat([self.one(x), self.two(x)], 1).mean((2, 3)))
            return logits

    net = FireflyNet.from_module(Joined().double().eval(), images(2))
    begin(net)
    with torch.no_grad():
        own_block(net, "head").from_own[:, 2:] = 0.0
        before = answers(net, images())
        prune(net, "two", torch.zeros(0, dtype=torch.int64))
        assert net.spaces["two"].width(1) == 0
        assert close(answers(net, images()), before)


def test_the_last_unit_that_a_layer_reads_cannot_go() -> None:
    net = net_of("mlp")
    before = snapshot(net)
    with pytest.raises(EditError, match="would read no unit"):
        prune(net, net.growable_spaces()[0], torch.zeros(4, dtype=torch.bool))
    assert_same_state(net, before)


def test_copies_of_units_whose_inputs_are_not_read_are_refused() -> None:
    net = net_of("mlp")
    first, second = net.growable_spaces()
    begin(net, reads={first: torch.tensor([0]), second: torch.tensor([1])})
    before = snapshot(net)
    with pytest.raises(EditError, match="does not read everything"):
        unlock(net, second, torch.tensor([1]))
    with pytest.raises(EditError, match="must read them"):
        unlock(net, first, torch.tensor([2]))
    assert_same_state(net, before)
    assert net.tasks[1].active[first].tolist() == [0, 1, 2, 3]  # closed upstream
    assert net.tasks[1].reads[first].tolist() == [0]


def test_only_a_frozen_network_begins_a_task_and_on_units_that_exist() -> None:
    net = net_of("mlp")
    first, _ = net.growable_spaces()
    with pytest.raises(EditError, match="still open: freeze it"):
        net.begin_task(3, 2)
    net.freeze()
    before = snapshot(net)
    for bad in (
        lambda: net.begin_task(0, 2),
        lambda: net.begin_task(3, -1),
        lambda: net.begin_task(3, {"nowhere": 2}),
        lambda: net.begin_task(3, 2, {first: torch.tensor([4])}),
        lambda: net.begin_task(3, 2, {first: torch.tensor([-1])}),
        lambda: net.begin_task(3, 2, {first: torch.tensor([1, 1])}),
        lambda: net.begin_task(3, 0, {name: torch.tensor([]).long() for name in net.spaces}),
    ):
        with pytest.raises(Exception) as caught:
            bad()
        assert type(caught.value).__name__ in ("EditError", "ConfigurationError"), caught.value
        assert_same_state(net, before)
        assert len(net.tasks) == 1
