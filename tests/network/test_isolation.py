"""Invariant 2: nothing done for a later task moves a bit of an earlier task's logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from growing_nets import (
    NAMES,
    VARIED,
    begin,
    images,
    net_of,
    part_reads,
    seeded,
    two_tasks,
)
from torch import Tensor

from firefly_cl.continual.precision import Precision, lay_out
from firefly_cl.network import FireflyNet, extract
from firefly_cl.network.edits import insert, prune, split, unlock, widen
from firefly_cl.network.execution import Execution, Streams
from firefly_cl.network.graph import Node
from firefly_cl.network.layers import GrowableLayer
from firefly_cl.network.rebuild import Edit, migrate


@dataclass(frozen=True)
class Way:
    """A way of training."""

    optimizer: str = "sgd"
    half: bool = False
    channels_last: bool = False

    def optimizer_of(self, net: FireflyNet) -> torch.optim.Optimizer:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(net.trainable(), lr=0.01, weight_decay=0.1)
        return torch.optim.SGD(
            net.trainable(), lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True
        )

    def train(self, net: FireflyNet, optimizer: torch.optim.Optimizer, seed: int) -> None:
        """Two steps, then back to how a network answers."""
        x = images(8, torch.float32, seed)
        y = torch.arange(8) % net.tasks[-1].classes
        precision = Precision(torch.bfloat16 if self.half else None, self.channels_last)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        net.train()
        for _ in range(2):
            optimizer.zero_grad()
            with precision.forward(x.device):
                loss = F.cross_entropy(net(x).float(), y)
            loss.backward()
            optimizer.step()
        net.eval()


WAYS = {
    "sgd": Way(),
    "adamw": Way("adamw"),
    "bfloat16": Way(half=True),
    "bfloat16 channels_last": Way(half=True, channels_last=True),
    "adamw channels_last": Way("adamw", channels_last=True),
}


@torch.no_grad()
def logits(net: FireflyNet, task: int) -> Tensor:
    return net.eval()(images(5, torch.float32, 9), task)


def edit_everywhere(net: FireflyNet, optimizer: torch.optim.Optimizer) -> None:
    edits: list[Edit] = []
    for space in net.growable_spaces():
        edits.append(widen(net, space, 2, generator=seeded()))
        edits.append(split(net, space, torch.tensor([0])))
        edits.append(unlock(net, space, torch.tensor([0, 2])))
        edits.append(prune(net, space, torch.arange(net.spaces[space].width(net.current) - 1)))
    for edit in edits:
        migrate(optimizer, edit)
    at = net.producers(net.growable_spaces()[0])[0].name
    insert(net, at, 2, generator=seeded())
    optimizer.param_groups[0]["params"] = net.trainable()


def learn_three_tasks(name: str, way: Way) -> Iterator[tuple[str, FireflyNet]]:
    """A stage by its name, and the network then."""
    net = net_of(name, dtype=torch.float32)
    if way.channels_last:
        lay_out(net, channels_last=True)
    way.train(net, way.optimizer_of(net), 20)
    lay_out(net, channels_last=False)
    yield "trained 0", net
    begin(net, widths=3)
    yield "began 1", net
    if way.channels_last:
        lay_out(net, channels_last=True)
    optimizer = way.optimizer_of(net)
    way.train(net, optimizer, 21)
    edit_everywhere(net, optimizer)
    way.train(net, optimizer, 22)
    lay_out(net, channels_last=False)
    yield "trained 1", net
    begin(net, 2, 2, part_reads(net, 0.6, seeded()))
    if way.channels_last:
        lay_out(net, channels_last=True)
    way.train(net, way.optimizer_of(net), 23)
    lay_out(net, channels_last=False)
    yield "trained 2", net
    net.freeze()
    yield "froze 2", net


@pytest.mark.parametrize("label", WAYS)
@pytest.mark.parametrize("name", VARIED)
def test_later_tasks_move_no_bit_of_earlier_logits(name: str, label: str) -> None:
    known: list[Tensor] = []
    for stage, net in learn_three_tasks(name, WAYS[label]):
        for task, before in enumerate(known):
            assert torch.equal(logits(net, task), before), (stage, task)
        if stage.startswith("trained"):
            known.append(logits(net, net.current))
            assert torch.isfinite(known[-1]).all()
    assert [k.shape[1] for k in known] == [3, 4, 2]


@pytest.mark.parametrize("name", NAMES)
def test_training_the_newest_task_leaves_frozen_numbers_alone_and_moves_its_own(name: str) -> None:
    net = two_tasks(name, dtype=torch.float32)
    own = {key for key, _ in net.task_parameters(1)}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    answer = logits(net, 0)
    WAYS["sgd"].train(net, WAYS["sgd"].optimizer_of(net), 3)
    assert torch.equal(logits(net, 0), answer)
    moved = {k for k, value in net.state_dict().items() if not torch.equal(value, before[k])}
    assert {key for key in moved if ".blocks.1." not in key} == set()
    still = {key for key in own - moved if before[key].numel()}
    assert not still, "every own parameter has a gradient"


def parameters_in_graph(loss: Tensor) -> set[int]:
    found, seen, stack = set(), set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        stack.extend(following for following, _ in node.next_functions)
    return found


@pytest.mark.parametrize("name", VARIED)
def test_no_gradient_work_reaches_frozen_units(name: str) -> None:
    net = two_tasks(name).train()
    watched: list[bool] = []

    class Watching(Execution):
        def step(self, node: Node, inputs: list[Streams]) -> Streams:  # type: ignore[override]
            out = super().step(node, inputs)
            if "old" in out:
                watched.append(out["old"].requires_grad or out["old"].grad_fn is not None)
            return out

    loss = F.cross_entropy(Watching(net, 1).run(images()), torch.arange(4))
    trainable = {id(p) for p in net.trainable() if p.numel()}
    assert parameters_in_graph(loss) == trainable
    assert watched and not any(watched)
    loss.backward()
    for _, parameter in net.task_parameters(0):
        assert parameter.grad is None and not parameter.requires_grad


def test_a_gradient_of_the_input_goes_through_frozen_units_when_asked_for() -> None:
    net = two_tasks("resnet9").eval()
    x = images()
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    net(one, 1).square().sum().backward()
    extract(net, 1)(other).square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-10)
    for _, parameter in net.task_parameters(0):
        assert parameter.grad is None


def test_frozen_weights_in_pieces_give_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of("resnet9", width=40, dtype=torch.float64)
    begin(net, 3, 2)
    net.freeze()
    x = images()
    whole = [net(x, task) for task in range(2)]
    monkeypatch.setattr("firefly_cl.network.layers._CACHE", 1)
    called: list[int] = []
    apply_weight = GrowableLayer.apply_weight

    def counting(layer: GrowableLayer, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        called.append(len(w))
        return apply_weight(layer, x, w, b)

    monkeypatch.setattr(GrowableLayer, "apply_weight", counting)
    for task in range(2):
        torch.testing.assert_close(net(x, task), whole[task], rtol=1e-12, atol=1e-12)
    assert called.count(8) == called.count(32) > 0  # 40 rows in two pieces
