"""Growth steps by splitting: on every model and task, within the budget, and as predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from curved_nets import BATCH, OTHER, curved, loss
from growing_nets import (
    NAMES,
    VARIED,
    answers,
    assert_same_state,
    begin,
    images,
    net_of,
    seeded,
    snapshot,
    train_steps,
    two_tasks,
)
from torch import Tensor, nn

from firefly_cl.errors import (
    BudgetTooSmall,
    ConfigurationError,
    DivergenceError,
    EditError,
    NothingToGrow,
)
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import COSTS, Budget, growth_cost, unit_cost
from firefly_cl.growth.criterion import Criterion, Model
from firefly_cl.growth.fast_splitting import FastSplitting
from firefly_cl.growth.signed_splitting import SignedSplitting
from firefly_cl.growth.splitting import Splitting
from firefly_cl.network import FireflyNet, floats
from firefly_cl.network.rebuild import migrate

REACH = 1e-2
FAMILY: dict[str, Criterion] = {
    "splitting": Splitting(REACH),
    "fast-splitting": FastSplitting(REACH, steps=24),
    "signed-splitting": SignedSplitting(reach=REACH),
    "signed-splitting, searched": SignedSplitting(exact=False, reach=REACH, steps=24),
}


def batch_for(net: FireflyNet, n: int = 12, dtype: torch.dtype = torch.float64) -> Any:
    return images(n, dtype, 3), torch.arange(n) % net.tasks[-1].classes


@pytest.mark.parametrize("label", FAMILY)
@pytest.mark.parametrize("tasks", [1, 2])
def test_the_loss_falls_by_what_was_predicted(label: str, tasks: int) -> None:
    net = curved(tasks)
    frozen = net(BATCH[0], 0)
    batches = [BATCH, OTHER]
    before = sum(float(loss(net, batch).detach()) for batch in batches) / 2
    growth = FAMILY[label].grow(net, batches, loss, Budget(6), seeded())
    after = sum(float(loss(net, batch).detach()) for batch in batches) / 2
    assert growth.gain > 1e-8 and sum(growth.by_space().values()) == 6
    assert before - after == pytest.approx(growth.gain, rel=0.1), growth.by_kind()
    if tasks > 1:
        assert torch.equal(net(BATCH[0], 0), frozen)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        *(("fast-splitting", name) for name in NAMES),  # curvature is the same for all of them
        *((label, name) for label in FAMILY if label != "fast-splitting" for name in VARIED),
        ("fast-splitting", "separable"),
    ],
)
def test_every_model_grows_on_a_later_task_and_learns_on(label: str, name: str) -> None:
    net = net_of(name, dtype=torch.float32)
    begin(net, widths=4)
    batch = batch_for(net, dtype=torch.float32)
    optimizer = train_steps(net, *batch, steps=1)
    frozen, before = answers(net, batch[0])[0], net.units()
    growth = FAMILY[label].grow(net, [batch], loss, Budget(4), seeded())
    assert net.units() - before == sum(growth.by_space().values()) == 4
    assert all(width[1] <= 8 for width in net.widths().values()), "at most doubled"
    for edit in growth.edits:
        migrate(optimizer, edit)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in net.trainable()}
    train_steps(net, *batch, steps=1, optimizer=optimizer)
    assert torch.equal(answers(net, batch[0])[0], frozen)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("label", ["fast-splitting", "signed-splitting, searched"])
@pytest.mark.parametrize("name", VARIED)
def test_a_step_keeps_to_its_budget_and_its_floats(name: str, label: str, cost: str) -> None:
    net = net_of(name)
    batch = batch_for(net)
    amount = 7 * max(unit_cost(net, space, cost) for space in net.growable_spaces())
    room = 3 * max(unit_cost(net, space, "parameters") for space in net.growable_spaces())
    size, widths = floats(net), net.widths()
    promised: dict[str, int] = {}
    budget = Budget(amount, cost, room)
    costs = {space: unit_cost(net, space, cost) for space in net.growable_spaces()}
    one = net_of(name)
    growth = FAMILY[label].grow(net, [batch], loss, budget, seeded())
    promised = growth.by_space()
    assert growth.kept and growth_cost(one, promised, cost) <= amount
    assert 0 < floats(net) - size <= room
    for candidate in growth.kept:
        assert candidate.cost == candidate.units * costs[candidate.space]
    for space, (width,) in net.widths().items():
        assert width - widths[space][0] == promised.get(space, 0) <= widths[space][0]


def stable() -> tuple[FireflyNet, Any]:
    """A network and data where every splitting matrix is positive definite.

    sigma'' > 0, outgoing weights > 0, and every output lies above its target.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        model[2].weight.abs_()
    x = torch.randn(40, 4, generator=seeded(1)).double()
    with torch.no_grad():
        y = model(x) - torch.rand(40, 1, generator=seeded(2)).double()
    return FireflyNet.from_module(model, x), (x, y)


def squares(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize("exact", [True, False])
def test_only_signed_splitting_goes_down_from_a_splitting_stable_network(exact: bool) -> None:
    net, batch = stable()
    before, state = float(squares(net, batch).detach()), snapshot(net)
    for plain in (Splitting(), FastSplitting(), SignedSplitting(c=1.0)):
        growth = plain.grow(net, [batch], squares, Budget(3), seeded())
        assert growth.kept == [] and growth.edits == []
        assert_same_state(net, state)
    signed = SignedSplitting(exact=exact, reach=0.05)
    growth = signed.grow(net, [batch], squares, Budget(3), seeded())
    after = float(squares(net, batch).detach())
    assert growth.gain > 1e-5 and sum(growth.by_kind().values()) == 3
    assert set(growth.by_kind()) <= {"signed-binary", "upper-triplet"}
    assert before - after == pytest.approx(growth.gain, rel=0.05)


@pytest.mark.parametrize("label", FAMILY)
def test_a_damaged_loss_is_an_error_and_the_network_is_as_it_was(label: str) -> None:
    net = two_tasks("resnet9").train()
    before, widths = snapshot(net), net.widths()

    def damaged(model: Model, batch: Any) -> Tensor:
        return loss(model, batch) * float("nan")

    with pytest.raises(DivergenceError, match="growth step"):
        FAMILY[label].grow(net, [batch_for(net)], damaged, Budget(4), seeded())
    assert_same_state(net, before)
    assert net.widths() == widths and net.training


@pytest.mark.parametrize("label", FAMILY)
@pytest.mark.parametrize("training", [False, True])
def test_a_step_without_gain_leaves_no_trace(label: str, training: bool) -> None:
    net = two_tasks("concat").train(training)
    before, state = snapshot(net), torch.get_rng_state()
    flags = [p.requires_grad for p in net.parameters()]
    expected = answers(net, images())

    def flat(model: Model, batch: Any) -> Tensor:
        return 0.0 * model(batch[0]).sum() + 1.0

    growth = FAMILY[label].grow(net, [batch_for(net)], flat, Budget(4), seeded())
    assert growth.kept == [] and growth.edits == [] and growth.gain == 0
    assert_same_state(net, before)
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters()) and net.training == training
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(answers(net, images()), expected, strict=True):
        assert torch.equal(one, other)


def test_the_same_seed_grows_the_same_network() -> None:
    nets = [curved(2), curved(2)]
    for net in nets:
        FastSplitting().grow(net, [BATCH], loss, Budget(4), seeded(3))
    assert_same_state(nets[1], snapshot(nets[0]))


def test_what_cannot_be_split_says_why() -> None:
    net = net_of("mlp")
    with pytest.raises(ConfigurationError, match="at least one batch"):
        Splitting().grow(net, [], loss, Budget(2), seeded())
    with pytest.raises(BudgetTooSmall, match="cheapest"):
        Splitting().grow(net, [BATCH], loss, Budget(2, "parameters"), seeded())
    for criterion in (Splitting(most_inputs=8), SignedSplitting(most_inputs=8)):
        with pytest.raises(EditError, match="fast-splitting"):
            criterion.grow(net, [BATCH], loss, Budget(2), seeded())
    begin(net, 3, widths=0)
    with pytest.raises(NothingToGrow, match="no unit of its own"):
        Splitting().grow(net, [BATCH], loss, Budget(2), seeded())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Splitting(reach=0.0),
        lambda: Splitting(reach=float("nan")),
        lambda: Splitting(score_batches=0),
        lambda: Splitting(most_inputs=0),
        lambda: FastSplitting(steps=0),
        lambda: FastSplitting(reach=-1.0),
        lambda: SignedSplitting(c=0.5),
        lambda: SignedSplitting(c=float("nan")),
        lambda: SignedSplitting(steps=0),
    ],
)
def test_settings_that_cannot_work_are_errors(make: Any) -> None:
    with pytest.raises(ConfigurationError):
        make()


def test_the_family_is_registered() -> None:
    for label, criterion in FAMILY.items():
        name = label.partition(",")[0]
        assert isinstance(criterion, CRITERIA.get(name))
        assert CRITERIA.describe(name).endswith(".")
