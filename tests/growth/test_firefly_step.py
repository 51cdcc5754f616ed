"""One firefly step: it leaves alone what it must, and promises what it then delivers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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

from firefly_cl.errors import ConfigurationError, DivergenceError, EditError
from firefly_cl.growth.budget import COSTS, Budget, Candidate, unit_cost
from firefly_cl.growth.candidates import propose
from firefly_cl.growth.commit import commit
from firefly_cl.growth.criterion import Model
from firefly_cl.growth.execution import CandidateExecution
from firefly_cl.growth.firefly import Firefly
from firefly_cl.network import FireflyNet, floats, flops
from firefly_cl.network.edits import prune, widen
from firefly_cl.network.rebuild import migrate

Batch = tuple[Tensor, Tensor]


def loss(model: Model, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batch_for(net: FireflyNet, n: int = 16, dtype: torch.dtype = torch.float64) -> Batch:
    return images(n, dtype, 3), torch.arange(n) % net.tasks[-1].classes


@torch.no_grad()
def loss_of(net: FireflyNet, batch: Batch) -> float:
    return float(loss(net.eval(), batch))


@pytest.mark.parametrize("name", NAMES)
def test_candidates_at_eps_0_change_nothing(name: str) -> None:
    net = two_tasks(name).eval()
    candidates = propose(net, net.growable_spaces(), 3, 2, seeded())
    x = images(6)
    with torch.no_grad():
        found = CandidateExecution(net, candidates).run(x)
        torch.testing.assert_close(found, net(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls_by_what_was_predicted(name: str) -> None:
    net = net_of(name)
    begin(net, widths=4)
    batch = batch_for(net)
    before, frozen = loss_of(net, batch), answers(net, batch[0])[0]
    # unit batch statistics differ from running ones by (n - 1) / n: the maps here hold 64 n
    growth = Firefly(news=4, copies=4, reach=1e-4, steps=3).grow(
        net, [batch], loss, Budget(6), seeded()
    )
    obtained = before - loss_of(net, batch)
    assert len(growth.kept) == 6 and growth.gain > 0
    assert 0.8 < obtained / growth.gain < 1.25, growth.by_kind()
    assert torch.equal(answers(net, batch[0])[0], frozen)
    assert sum(growth.by_space().values()) == sum(growth.by_kind().values()) == 6


def test_all_kinds_of_candidate_are_committed_and_their_optimizer_state_follows() -> None:
    net = two_tasks("resnet9")
    batch = batch_for(net)
    optimizer = train_steps(net, *batch, steps=2)
    spaces = net.growable_spaces()
    candidates = propose(net, spaces, 2, 2, seeded())
    kept = [
        Candidate(kind, space, unit, 1.0, 1)
        for space in spaces
        for kind, unit in (
            ("split", 1),
            ("unlock", int(candidates[space].copies[0])),
            ("new", 1),
            ("split", 0),
        )
    ]
    CandidateExecution(net.eval(), candidates).run(batch[0])  # statistics of new units
    before = answers(net, batch[0])
    edits = commit(net, candidates, kept, 1e-9)
    torch.testing.assert_close(answers(net, batch[0])[1], before[1], rtol=1e-5, atol=1e-5)
    assert {width[1] for width in net.widths().values()} == {2 + 4}
    for edit in edits:
        migrate(optimizer, edit)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in net.trainable()}
    train_steps(net, *batch, optimizer=optimizer)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", VARIED)
def test_a_step_that_keeps_nothing_leaves_no_trace(name: str, training: bool) -> None:
    net = two_tasks(name).train(training)
    before, flags = snapshot(net), [p.requires_grad for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    x = images()
    expected = answers(net, x)
    state = torch.get_rng_state()

    def flat(model: Model, batch: Batch) -> Tensor:
        return 0.0 * model(batch[0]).sum() + 1.0

    growth = Firefly(news=2, copies=2, depths=2, steps=2).grow(
        net, [batch_for(net)], flat, Budget(4), seeded()
    )
    assert growth.kept == [] and growth.edits == [] and growth.gain == 0
    assert_same_state(net, before)
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(answers(net, x), expected, strict=True):
        assert torch.equal(one, other)


def test_a_step_leaves_gradients_of_the_network_alone() -> None:
    net = two_tasks("mlp")
    batch = batch_for(net)
    loss(net, batch).backward()
    before = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    untouched = {id(p): i for i, p in enumerate(net.parameters())}
    Firefly(news=2, depths=2, steps=2).grow(net, [batch], loss, Budget(1), seeded())
    for parameter in net.parameters():
        grad = before[untouched[id(parameter)]] if id(parameter) in untouched else None
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_a_damaged_loss_is_an_error_and_the_network_is_as_it_was(damage: float) -> None:
    net = two_tasks("resnet9").train()
    before, widths = snapshot(net), net.widths()
    flags = [p.requires_grad for p in net.parameters()]

    def damaged(model: Model, batch: Batch) -> Tensor:
        return loss(model, batch) * damage

    with pytest.raises(DivergenceError, match="growth step"):
        Firefly(news=2, depths=2, steps=2).grow(net, [batch_for(net)], damaged, Budget(4), seeded())
    assert_same_state(net, before)
    assert net.widths() == widths and net.training
    assert [p.requires_grad for p in net.parameters()] == flags


@pytest.mark.parametrize("cost", ["parameters", "flops"])
def test_a_budget_too_small_says_what_the_cheapest_unit_costs(cost: str) -> None:
    net = two_tasks("resnet9")
    cheapest = min(unit_cost(net, space, cost) for space in net.growable_spaces())
    with pytest.raises(EditError, match=f"the cheapest costs {cheapest}"):
        Firefly().grow(net, [batch_for(net)], loss, Budget(cheapest - 1, cost), seeded())
    grown = Firefly(news=2, steps=1).grow(
        net, [batch_for(net)], loss, Budget(cheapest, cost), seeded()
    )
    assert len(grown.kept) == 1


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", VARIED)
def test_a_step_stays_within_its_budget_as_counted_before_it(name: str, cost: str) -> None:
    net = two_tasks(name)
    amount = 5 * max(unit_cost(net, space, cost) for space in net.growable_spaces())
    before = sum(map(sum, net.widths().values()))
    growth = Firefly(news=4, copies=4, steps=1).grow(
        net, [batch_for(net)], loss, Budget(amount, cost), seeded()
    )
    assert sum(candidate.cost for candidate in growth.kept) <= amount
    assert sum(map(sum, net.widths().values())) - before == len(growth.kept) > 0
    assert all(width[1] <= 4 for width in net.widths().values()), "at most doubled"


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_costs_what_one_more_unit_adds(name: str) -> None:
    net = two_tasks(name)
    for space in net.growable_spaces():
        predicted = {cost: unit_cost(net, space, cost) for cost in COSTS}
        before = {"units": net.units(), "parameters": floats(net), "flops": flops(net)}
        edit = widen(net, space, 1, generator=seeded())
        after = {"units": net.units(), "parameters": floats(net), "flops": flops(net)}
        assert {k: after[k] - before[k] for k in before} == predicted, edit.space
        prune(net, space, torch.arange(net.spaces[space].width(1) - 1))


def test_the_same_seed_grows_the_same_network() -> None:
    nets = [two_tasks("concat") for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        Firefly(news=3, copies=3, steps=2).grow(
            net, [batch_for(net)], loss, Budget(5), seeded(seed)
        )
    assert nets[0].widths() == nets[1].widths()
    assert_same_state(nets[1], snapshot(nets[0]))
    third = nets[2].state_dict()
    assert any(
        third[key].shape != value.shape or not torch.equal(third[key], value)
        for key, value in nets[0].state_dict().items()
    )


@pytest.mark.parametrize(
    "setting",
    [
        {"news": -1},
        {"steps": -1},
        {"copies": -1},
        {"depths": -1},
        {"reach": 0.0},
        {"reach": float("nan")},
        {"step_size": -1.0},
        {"path_points": 0},
        {"score_batches": 0},
        {"halvings": -1},
    ],
)
def test_settings_that_cannot_work_are_errors(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        dataclasses.replace(Firefly(), **setting)


def test_growing_needs_an_open_task_and_data() -> None:
    net = two_tasks("mlp")
    with pytest.raises(ConfigurationError, match="at least one batch"):
        Firefly().grow(net, [], loss, Budget(2), seeded())
    batch = batch_for(net)
    net.freeze()
    with pytest.raises(EditError, match="frozen"):
        Firefly().grow(net, [batch], loss, Budget(2), seeded())


def test_growth_lowers_the_loss_more_than_random_units_of_the_same_number() -> None:
    """A student of two hidden units beside a teacher of many, three seeds."""
    gains, by_chance = [], []
    for seed in range(3):
        student, random = (net_of("mlp", width=2, seed=seed) for _ in range(2))
        x = images(64, seed=seed + 10)
        teacher = nn.Linear(x[0].numel(), 3, dtype=torch.float64)
        with torch.no_grad():
            teacher.weight.normal_(generator=seeded(seed))
            y = teacher(x.flatten(1)).square().argmax(1)
        batch = (x, y)
        for net in (student, random):
            train_steps(net, *batch, steps=10)
        before = loss_of(student, batch)
        assert before == loss_of(random, batch)
        criterion = Firefly(news=8, reach=0.05)
        criterion.grow(student, [batch], loss, Budget(4), seeded(seed))
        candidates = propose(random, random.growable_spaces(), 8, 8, seeded(seed))
        chosen = [
            Candidate("new", space, unit, 0.0, 1, sign)
            for space in random.growable_spaces()
            for unit, sign in ((0, 1.0), (1, -1.0))
        ]
        commit(random, candidates, chosen, 0.05)
        assert random.units() == student.units()
        gains.append(before - loss_of(student, batch))
        by_chance.append(before - loss_of(random, batch))
    assert min(gains) > 0
    assert all(gain > chance for gain, chance in zip(gains, by_chance, strict=True))
    assert sum(gains) > 2 * max(sum(by_chance), 0.0)


@pytest.mark.parametrize("name", VARIED)
def test_new_units_do_not_end_up_as_one_unit(name: str) -> None:
    """Without the projection a long search leaves them with cosines near 1 (checked by hand)."""
    net = net_of(name)
    begin(net, widths=4)
    candidates = propose(net, net.growable_spaces(), 4, 0, seeded())
    Firefly(news=4, steps=8, step_size=0.5, incoming=True).search(
        net, candidates, [batch_for(net)], loss
    )
    compared = 0
    for each in candidates.values():
        for values, dim, units, length, orthogonal in each.searched():
            parts = [v.movedim(dim, 0).reshape(units, -1) for v in values if units]
            if not orthogonal or not parts or torch.cat(parts, 1).shape[1] < units:
                continue
            together = torch.cat(parts, 1) / length
            torch.testing.assert_close(together @ together.T, torch.eye(units).to(together))
            compared += 1
    assert compared


@pytest.mark.parametrize(("name", "reach"), [("mlp", 16.0), ("resnet9", 4.0), ("vgg19", 4.0)])
def test_too_long_a_reach_is_cut_before_it_raises_the_loss(name: str, reach: float) -> None:
    changes = []
    for halvings in (6, 0):
        criterion = Firefly(news=4, copies=2, reach=reach, halvings=halvings)
        net = two_tasks(name)
        batch = batch_for(net)
        before = loss_of(net, batch)
        growth = criterion.grow(net, [batch], loss, Budget(6), seeded())
        assert growth.kept
        changes.append(before - loss_of(net, batch))
    assert changes[0] > 0 > changes[1]
