"""Weight decay of copies goes to where they began."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from growing_nets import VARIED, two_tasks
from growing_streams import PLAN, RECIPE, growing, stream_of
from torch import Tensor, nn

from firefly_cl.continual.anchor import Anchor
from firefly_cl.continual.plan import Plan
from firefly_cl.continual.strategy import FireflyStrategy
from firefly_cl.errors import ConfigurationError
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import divide
from firefly_cl.network.layers import GrowableLayer

STREAM = [((0, 1), 24), ((2, 3), 24)]
COPIES = replace(PLAN, start="copies", shared=0.0, grow_at=())
ANCHORED = replace(COPIES, anchored=True)


def copied_weights(net: FireflyNet, task: int) -> dict[str, Tensor]:
    """Weights of a task besides those of its head."""
    layers = {name: layer for name, layer in net.layers.items() if isinstance(layer, GrowableLayer)}
    return {
        f"{name} {part}": weight.detach().clone()
        for name, layer in layers.items()
        if not layer.is_head and (block := layer.block(task)) is not None
        for part, weight in block.named_parameters()
        if part != "bias"
    }


def trained(plan: Plan, decay: float, name: str = "resnet9", epochs: int = 2) -> FireflyStrategy:
    recipe = replace(RECIPE, weight_decay=decay, learning_rate=0.02, epochs=epochs)
    strategy = growing(name, plan=plan, recipe=recipe)
    for experience in stream_of(STREAM).train_stream:
        strategy.train(experience, eval_streams=[])
    return strategy


def moved(strategy: FireflyStrategy) -> float:
    """How far the second task's weights went from the first's, per weight of these."""
    there, here = (
        torch.cat([weight.flatten() for weight in copied_weights(strategy.net, task).values()])
        for task in (0, 1)
    )
    return float((here - there).norm() / there.norm())


def test_copies_stay_nearer_to_where_they_began() -> None:
    assert moved(trained(ANCHORED, 1.0)) < 0.5 * moved(trained(COPIES, 1.0))


def test_the_first_task_and_what_does_not_decay_are_as_ever() -> None:
    plain, anchored = trained(COPIES, 1.0), trained(ANCHORED, 1.0)
    for key, weight in copied_weights(plain.net, 0).items():
        assert torch.equal(weight, copied_weights(anchored.net, 0)[key])
    plain, anchored = trained(COPIES, 0.0), trained(ANCHORED, 0.0)
    for key, weight in copied_weights(plain.net, 1).items():
        assert torch.equal(weight, copied_weights(anchored.net, 1)[key])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_is_that_of_the_penalty_around_the_anchor(name: str) -> None:
    net = two_tasks("mlp")
    space = net.growable_spaces()[0]
    [producer] = net.producers(space)
    weight = net.layers[producer.name].block(1).from_old
    other = net.layers[producer.name].block(1).bias
    anchor = Anchor()
    anchor.take(net, {space: torch.arange(1)})
    start = weight.detach().clone()
    with torch.no_grad():
        weight.add_(0.5)
    rate, decay = 0.1, 0.3
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    optimizer = kinds[name]([weight, other], lr=rate, weight_decay=decay)
    free = nn.Parameter(weight.detach().clone())
    without = kinds[name]([free], lr=rate, weight_decay=0.0)
    unanchored = other.detach().clone()
    for parameter in (weight, free, other):
        parameter.grad = torch.full_like(parameter, 0.2)
    before = weight.detach().clone()
    anchor.pull(optimizer)
    optimizer.step()
    without.step()
    torch.testing.assert_close(weight - free, -rate * decay * (before - start))
    if name == "sgd":
        torch.testing.assert_close(other, unanchored - rate * (0.2 + decay * unanchored))


@pytest.mark.parametrize("name", VARIED)
def test_anchors_go_with_the_units(name: str) -> None:
    """Where weights are still at their anchors, they are so after an edit; fresh ones apart."""
    net = two_tasks(name)
    anchor = Anchor()
    anchor.take(net, {space: torch.arange(2) for space in net.growable_spaces()})
    names = {parameter: name for name, parameter in net.named_parameters()}
    held = anchor.state(names)
    assert held
    for space in net.growable_spaces():
        sources, shares = torch.tensor([1, 0, 1]), torch.tensor([1.2, 1.0, -0.2])
        anchor.follow(divide(net, space, sources, shares))
    parameters = dict(net.named_parameters())
    followed = anchor.state({parameter: name for name, parameter in parameters.items()})
    assert followed.keys() == held.keys()
    for key, start in followed.items():
        torch.testing.assert_close(start, parameters[key].detach())


def test_anchored_copies_need_some() -> None:
    with pytest.raises(ConfigurationError, match="start is random: use copies or nearest"):
        Plan(anchored=True)


def test_anchored_tasks_grow() -> None:
    plan = replace(ANCHORED, grow_at=(0.5,), growth=0.5, patience=-10.0)
    strategy = trained(plan, 0.1, epochs=4)
    widths = strategy.net.widths()
    assert any(own[1] > own[0] for own in widths.values())
