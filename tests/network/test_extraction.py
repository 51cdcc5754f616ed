"""Invariant 3: extract(task) is an ordinary module with the task's logits."""

from __future__ import annotations

import copy

import pytest
import torch
from growing_nets import (
    NAMES,
    VARIED,
    answers,
    begin,
    close,
    images,
    part_reads,
    seeded,
    snapshot,
    train_steps,
    two_tasks,
)
from torch import nn

from firefly_cl.errors import ConfigurationError
from firefly_cl.network import FireflyNet, extract
from firefly_cl.network.edits import deselect, insert, unlock, widen

PLAIN = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout)


def three_tasks(name: str, dtype: torch.dtype = torch.float64) -> FireflyNet:
    """The second task has an inserted layer, the third reads a part of all."""
    net = two_tasks(name, dtype=dtype)
    spaces = net.growable_spaces()
    hidden = insert(net, net.producers(spaces[-1])[0].name, 2, generator=seeded()).space
    unlock(net, spaces[0], torch.tensor([1]))
    x = images(6, dtype)
    train_steps(net, x, torch.arange(6) % 4)
    begin(net, 2, 1, part_reads(net, 0.5, seeded(4)))
    widen(net, hidden, 1, generator=seeded())
    for space in spaces[1::2]:
        deselect(net, space, net.tasks[2].reads[space][:1])
    train_steps(net, x, torch.arange(6) % 2)
    return net


@pytest.mark.parametrize("name", NAMES)
def test_extracted_modules_answer_as_the_network_does(name: str) -> None:
    net = three_tasks(name).eval()
    x = images(5)
    before = snapshot(net)
    modules = [extract(net, task) for task in range(3)]
    with torch.no_grad():
        assert close(answers(net, x), [module(x) for module in modules])
        assert close([net(x)], [extract(net)(x)])
    for module in modules:
        for inner in list(module.modules())[1:]:
            assert type(inner) in PLAIN or type(inner) is nn.Module, type(inner)
        for node in module.graph.nodes:
            if node.op == "call_function":
                assert node.target.__module__.split(".")[0].startswith(("torch", "_")), node
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), "the extracted weights are copies"


@pytest.mark.parametrize("name", VARIED)
def test_extracted_modules_survive_copying_tracing_and_a_state_dict(name: str) -> None:
    net = three_tasks(name).eval()
    x = images(5)
    module = extract(net, 2)
    with torch.no_grad():
        expected = module(x)
        assert torch.equal(copy.deepcopy(module)(x), expected)
        assert torch.equal(torch.fx.symbolic_trace(module)(x), expected)
    fresh = extract(net, 2)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(module.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(fresh(x), expected)


@pytest.mark.parametrize("name", ["mlp-bn", "grouped"])
def test_extracted_modules_can_be_exported(name: str) -> None:
    net = two_tasks(name, dtype=torch.float32).eval()
    x = images(3, torch.float32)
    module = extract(net, 1)
    exported = torch.export.export(module, (x,))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), module(x))


def test_extracted_modules_train_on_their_own() -> None:
    net = two_tasks("resnet9").train()
    module = extract(net, 1)
    assert module.training
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    x, y = images(8), torch.arange(8) % 4
    before = snapshot(net)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["mlp-bn", "resnet9"])
def test_extraction_leaves_the_global_generator_alone(name: str) -> None:
    net = two_tasks(name)
    state = torch.get_rng_state()
    extract(net)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("task", [2, -1, 7])
def test_a_task_that_the_network_has_not_seen_is_an_error(task: int) -> None:
    net = two_tasks("mlp")
    with pytest.raises(ConfigurationError, match="learnt tasks 0 to 1"):
        extract(net, task)
    with pytest.raises(ConfigurationError, match="learnt tasks 0 to 1"):
        net(images(), task)
