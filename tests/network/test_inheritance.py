"""A task that starts from copies of an older one has its features, and leaves it as it is."""

from __future__ import annotations

import pytest
import torch
from growing_nets import NAMES, VARIED, answers, begin, images, net_of, train_steps

from firefly_cl.errors import EditError
from firefly_cl.network import FireflyNet
from firefly_cl.network.deeper import deeper_places
from firefly_cl.network.edits import insert
from firefly_cl.network.inherit import inherit


def chain(name: str, shared: int = 0) -> FireflyNet:
    """Two tasks; the second reads the older units of the first `shared` spaces and starts anew."""
    net = net_of(name)
    spaces = net.growable_spaces()
    net.freeze()
    none = torch.zeros(0, dtype=torch.int64)
    reads = {space: none for space in spaces[shared:]}
    widths = {space: 2 if i < shared else 4 for i, space in enumerate(spaces)}
    begin(net, 3, widths, reads)
    return net


def originals(net: FireflyNet, shared: int = 0) -> dict[str, torch.Tensor]:
    return {space: net.spaces[space].owned(0) for space in net.growable_spaces()[shared:]}


def same_head(net: FireflyNet) -> None:
    """Give the newest task the head of the first, on the copies."""
    (node,) = (node for node in net.nodes if node.kind == "head")
    layer = net.layers[node.name]
    new, old = layer.block(net.current), layer.block(0)
    with torch.no_grad():
        new.from_own.copy_(old.from_own)
        new.bias.copy_(old.bias)


@pytest.mark.parametrize("name", NAMES)
def test_copies_of_everything_have_the_features_of_the_task_before(name: str) -> None:
    net = chain(name)
    before = answers(net, images())[0]
    inherit(net, originals(net))
    same_head(net)
    after = answers(net, images())
    assert torch.equal(after[0], before)
    torch.testing.assert_close(after[1], before)
    assert not any(len(net.tasks[1].reads[space]) for space in net.growable_spaces())


@pytest.mark.parametrize("name", VARIED)
def test_copies_may_be_of_a_task_further_back(name: str) -> None:
    net = chain(name)
    before = answers(net, images())
    none = torch.zeros(0, dtype=torch.int64)
    begin(net, 3, 4, {space: none for space in net.growable_spaces()}, seed=8)
    inherit(net, originals(net), 0)
    same_head(net)
    after = answers(net, images())
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])
    torch.testing.assert_close(after[2], before[0])
    for source in (2, -1):
        with pytest.raises(EditError, match="cannot inherit"):
            inherit(net, originals(net), source)


@pytest.mark.parametrize("name", VARIED)
def test_copies_are_undisturbed_by_a_layer_inserted_since(name: str) -> None:
    net = chain(name)
    before = answers(net, images())[0]
    inserted = insert(net, deeper_places(net)[0], 2).space
    none = torch.zeros(0, dtype=torch.int64)
    widths = {space: 1 if space == inserted else 4 for space in net.growable_spaces()}
    begin(net, 3, widths, {space: none for space in net.growable_spaces()}, seed=8)
    inherit(net, originals(net), 0)
    same_head(net)
    torch.testing.assert_close(answers(net, images())[2], before)


@pytest.mark.parametrize("name", VARIED)
def test_copies_read_what_is_shared_where_it_stands(name: str) -> None:
    net = chain(name, shared=1)
    before = answers(net, images())[0]
    inherit(net, originals(net, shared=1))
    same_head(net)
    torch.testing.assert_close(answers(net, images())[1], before)


@pytest.mark.parametrize("name", ["mlp-bn", "resnet9", "mobilenetv1"])
def test_other_units_of_the_task_do_not_disturb_the_copies(name: str) -> None:
    net = net_of(name)
    net.freeze()
    none = torch.zeros(0, dtype=torch.int64)
    begin(net, 3, 6, {space: none for space in net.growable_spaces()})
    before = answers(net, images())[0]
    inherit(net, originals(net))
    (node,) = (node for node in net.nodes if node.kind == "head")
    new, old = net.layers[node.name].block(1), net.layers[node.name].block(0)
    with torch.no_grad():
        new.from_own.zero_()
        new.from_own[:, : old.from_own.shape[1]] = old.from_own
        new.bias.copy_(old.bias)
    torch.testing.assert_close(answers(net, images())[1], before)


def test_training_the_copies_leaves_the_originals() -> None:
    net = chain("resnet9")
    inherit(net, originals(net))
    before = answers(net, images(8))
    train_steps(net, images(8), torch.arange(8) % 3)
    after = answers(net, images(8))
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1])


def test_impossible_inheritance_is_refused() -> None:
    net = chain("mlp", shared=1)
    space = net.growable_spaces()[0]
    with pytest.raises(EditError, match="has 2 units"):
        inherit(net, {space: net.spaces[space].owned(0)})
    with pytest.raises(EditError, match="does not own"):
        inherit(net, {space: torch.tensor([5])})
    net.freeze()
    with pytest.raises(EditError, match="cannot inherit"):
        inherit(net, {})


def test_tasks_that_are_begun_without_a_generator_differ() -> None:
    net = net_of("mlp-bn")
    for _ in range(2):
        net.freeze()
        net.begin_task(2, 4)
    head = net.layers[next(node.name for node in net.nodes if node.kind == "head")]
    first, second = (head.block(task).from_own for task in (1, 2))
    assert first.shape == second.shape and not torch.equal(first, second)
