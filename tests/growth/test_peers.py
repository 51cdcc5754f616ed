"""The peers of firefly growth: budgets, isolation, seeds and errors, the same for all of them."""

from __future__ import annotations

import dataclasses
import itertools
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
from torch import Tensor
from torch.utils.data import DataLoader

from firefly_cl.errors import BudgetTooSmall, ConfigurationError, DivergenceError, EditError
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import COSTS, Budget, Candidate, growth_cost, take, unit_cost
from firefly_cl.growth.criterion import Criterion, Growth, Model
from firefly_cl.network import FireflyNet, floats, own_flops
from firefly_cl.network.rebuild import migrate

Batch = tuple[Tensor, Tensor]
QUICK: dict[str, dict[str, Any]] = {
    "uniform": {},
    "random": {},
    "random-search": {"tries": 2, "steps": 2},
    "net2net": {},
    "gradmax": {},
    "tiny": {},
    "firefly-split": {"steps": 1, "score_batches": 1},
    "firefly-new": {"news": 8, "steps": 1, "score_batches": 1},
}
PEERS = tuple(QUICK)
LOSSLESS = ("net2net",)
"""Criteria that never look at the loss."""
PROMISING_NOTHING = {("tiny", "mobilenetv1"), *(("firefly-split", name) for name in NAMES)}
"""Where no unit may promise anything: the last layers of MobileNetV1 pass no gradient on, with
the two channels of its own that the task has."""


def made(name: str) -> Criterion:
    criterion: Criterion = CRITERIA.get(name)(**QUICK[name])
    return criterion


def loss(model: Model, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batches_for(net: FireflyNet, dtype: torch.dtype = torch.float64) -> list[Batch]:
    labels = torch.arange(12) % net.tasks[-1].classes
    return [(images(12, dtype, seed), labels) for seed in (3, 4)]


def grown(name: str, net: FireflyNet, budget: Budget, seed: int = 0) -> Growth:
    return made(name).grow(net, batches_for(net), loss, budget, seeded(seed))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((name, model) for name in PEERS for model in (*VARIED, "mobilenetv1")),
        # the deeper backbones and the plain ones, once
        *(("gradmax", model) for model in NAMES if model not in (*VARIED, "mobilenetv1")),
    ],
)
def test_a_later_task_grows_and_the_older_one_answers_as_before(name: str, model: str) -> None:
    net = two_tasks(model)
    x = images(6)
    older, widths = answers(net, x)[0], net.widths()
    costs = [unit_cost(net, space, "parameters") for space in net.growable_spaces()]
    growth = grown(name, net, Budget(max(costs), "parameters"))
    assert torch.equal(answers(net, x)[0], older)
    assert all(after[0] == widths[s][0] for s, after in net.widths().items())
    assert all(after[1] <= 2 * widths[s][1] for s, after in net.widths().items()), "doubled"
    added = {s: after[1] - widths[s][1] for s, after in net.widths().items()}
    assert {s: n for s, n in added.items() if n} == growth.by_space()
    assert growth.kept or (name, model) in PROMISING_NOTHING
    if name in ("uniform", "random", "random-search", "net2net"):
        assert growth.gain == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PEERS)
def test_the_first_task_grows_in_training_mode_and_trains_on(name: str, dtype: torch.dtype) -> None:
    net = net_of("resnet9", dtype=dtype).train()
    batches = batches_for(net, dtype)
    optimizer = train_steps(net, *batches[0], steps=1)
    net.train()
    growth = made(name).grow(net, batches, loss, Budget(5), seeded())
    assert net.training and 0 < len(growth.kept) <= 5
    for edit in growth.edits:
        migrate(optimizer, edit)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in net.trainable()}
    assert all(p.dtype == dtype and bool(p.isfinite().all()) for p in net.parameters())
    train_steps(net, *batches[0], steps=2, optimizer=optimizer)
    assert all(bool(p.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", [n for n in PEERS if n != "firefly-split"])
def test_at_an_equal_budget_all_add_about_as_much(name: str, cost: str) -> None:
    net = net_of("mlp", width=8) if cost == "units" else net_of("vgg11", width=8)
    spaces = net.growable_spaces()
    amount = growth_cost(net, dict.fromkeys(spaces, 2), cost)
    before = {"units": net.units(), "parameters": floats(net), "flops": own_flops(net)}
    growth = grown(name, net, Budget(amount, cost))
    after = {"units": net.units(), "parameters": floats(net), "flops": own_flops(net)}
    assert 0.8 * amount <= after[cost] - before[cost] <= amount
    assert len(growth.kept) == net.units() - before["units"]


@pytest.mark.parametrize("name", PEERS)
def test_the_floats_of_a_budget_are_a_limit_of_their_own(name: str) -> None:
    net = net_of("vgg11")
    most = growth_cost(net, dict.fromkeys(net.growable_spaces()[:3], 1), "parameters")
    before = floats(net)
    grown(name, net, Budget(1000, "units", most))
    assert 0 < floats(net) - before <= most


@pytest.mark.parametrize("name", PEERS)
def test_the_same_seed_grows_the_same_network(name: str) -> None:
    nets = [two_tasks("concat") for _ in range(2)]
    state = torch.get_rng_state()
    for net in nets:
        grown(name, net, Budget(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert nets[0].widths() == nets[1].widths()
    assert_same_state(nets[1], snapshot(nets[0]))


@pytest.mark.parametrize("name", ["uniform", "random", "random-search", "net2net"])
def test_another_seed_grows_another_network(name: str) -> None:
    nets = [two_tasks("concat") for _ in range(2)]
    for seed, net in enumerate(nets):
        grown(name, net, Budget(5), seed)
    one, other = nets[0].state_dict(), nets[1].state_dict()
    assert any(
        value.shape != other[key].shape or not torch.equal(value, other[key])
        for key, value in one.items()
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [n for n in PEERS if n not in LOSSLESS])
def test_a_damaged_loss_is_an_error_and_the_network_is_as_it_was(name: str, training: bool) -> None:
    net = two_tasks("resnet9").train(training)
    before, widths = snapshot(net), net.widths()
    flags, modes = [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]

    def damaged(model: Model, batch: Batch) -> Tensor:
        return loss(model, batch) * float("nan")

    with pytest.raises(DivergenceError):
        made(name).grow(net, batches_for(net), damaged, Budget(4), seeded())
    assert_same_state(net, before)
    assert net.widths() == widths
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [m.training for m in net.modules()] == modes


@pytest.mark.parametrize("name", PEERS)
def test_impossible_steps_are_errors_and_the_network_is_as_it_was(name: str) -> None:
    net = two_tasks("mlp")
    before, widths = snapshot(net), net.widths()
    with pytest.raises(BudgetTooSmall, match="the cheapest costs"):
        grown(name, net, Budget(1, "flops"))
    if name not in LOSSLESS:
        with pytest.raises(ConfigurationError, match="are a DataLoader: give a list"):
            made(name).grow(net, DataLoader([0]), loss, Budget(4), seeded())  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="at least one batch"):
            made(name).grow(net, [], loss, Budget(4), seeded())
    assert_same_state(net, before)
    assert net.widths() == widths
    net.freeze()
    with pytest.raises(EditError, match="frozen"):
        grown(name, net, Budget(4))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("uniform", {"reach": 0.0}),
        ("random", {"reach": float("nan")}),
        ("random-search", {"tries": 0}),
        ("random-search", {"steps": -1}),
        ("random-search", {"learning_rate": 0.0}),
        ("net2net", {"noise": -0.1}),
        ("gradmax", {"scale": 0.0}),
        ("gradmax", {"rate": -1.0}),
        ("gradmax", {"score_batches": 0}),
        ("tiny", {"reach": 0.0}),
        ("tiny", {"cutoff": 1.0}),
        ("tiny", {"score_batches": 0}),
    ],
)
def test_settings_that_cannot_work_are_errors(name: str, setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=name):
        CRITERIA.get(name)(**setting)


# --- uniform and random --------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [1, 7, 12, 20, 100])
@pytest.mark.parametrize("model", VARIED)
def test_uniform_adds_the_same_number_everywhere(model: str, amount: int) -> None:
    net = net_of(model)  # 4 units in every space
    growth = grown("uniform", net, Budget(amount))
    counts = [growth.by_space().get(space, 0) for space in net.growable_spaces()]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == min(amount, 4 * len(counts))


def test_uniform_goes_on_elsewhere_where_a_space_is_doubled() -> None:
    net = net_of("mlp")
    begin(net, widths={"hidden_0": 1, "hidden_2": 4})
    growth = grown("uniform", net, Budget(5))
    assert growth.by_space() == {"hidden_0": 1, "hidden_2": 4}


def test_random_draws_splits_and_new_units_in_all_spaces() -> None:
    net = net_of("concat")
    kinds, spaces = set(), set()
    for seed in range(6):
        growth = grown("random", net_of("concat"), Budget(8), seed)
        kinds |= set(growth.by_kind())
        spaces |= set(growth.by_space())
    assert kinds == {"split", "new"} and spaces == set(net.growable_spaces())


@pytest.mark.parametrize("name", ["uniform", "random"])
def test_drawn_units_move_the_function_by_their_reach(name: str) -> None:
    moved = []
    for reach in (1e-3, 1e-4):
        net = two_tasks("concat")
        x = batches_for(net)[0][0]
        before = answers(net, x)[1]
        CRITERIA.get(name)(reach=reach).grow(net, batches_for(net), loss, Budget(6), seeded())
        moved.append(float((answers(net, x)[1] - before).abs().max()))
    assert 0 < 5 * moved[1] < moved[0]


def test_drawn_new_units_have_the_statistics_of_the_batch() -> None:
    net = net_of("mlp-bn")
    batch = batches_for(net)[0]
    grown("uniform", net, Budget(4))
    norm = net.layers["hidden_1"].block(0)  # type: ignore[union-attr,operator]
    rows = net.layers["hidden_0"].block(0)  # type: ignore[union-attr,operator]
    values = batch[0].flatten(1) @ torch.cat([rows.from_old, rows.from_own], 1)[4:].T
    torch.testing.assert_close(norm.running_mean[4:], values.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var[4:], values.var(0), rtol=1e-5, atol=1e-6)


def test_take_keeps_to_the_order_given() -> None:
    pool = [Candidate("new", s, i, 0.0, cost) for i, (s, cost) in enumerate([("a", 3), ("b", 5)])]
    most = {"a": 1, "b": 1}
    for order in itertools.permutations(pool):
        assert take(order, Budget(5, "flops"), most) == [order[0]]
    assert take(pool, Budget(8, "flops"), most) == pool


# --- firefly with one kind of candidate ----------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("firefly-split", "split"), ("firefly-new", "new")])
def test_firefly_of_one_kind_runs_no_candidates_of_the_other(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firefly_cl.growth import firefly

    ghosts: list[tuple[int, int, int, int]] = []
    streams: list[list[str]] = []

    class Counting(firefly.CandidateExecution):
        def run(self, x: Tensor) -> Tensor:
            ghosts.extend((c.splits, len(c.copies), c.news, c.ghosts) for c in self.spaces.values())
            streams.append(self.ghost_streams())
            return super().run(x)

    monkeypatch.setattr(firefly, "CandidateExecution", Counting)
    net = two_tasks("mlp")
    growth = grown(name, net, Budget(4))
    assert set(growth.by_kind()) <= {kind}
    if kind == "split":
        assert set(ghosts) == {(2, 0, 0, 4)}
        assert ["ghost", "path"] in streams
    else:
        assert set(ghosts) == {(0, 0, 8, 8)}
        assert streams and all(found == ["ghost"] for found in streams)


def test_new_units_alone_can_double_every_layer_however_few_are_asked_for() -> None:
    net = net_of("mlp-bn", width=6)
    step = CRITERIA.get("firefly-new")(news=1)
    growth = step.grow(net, batches_for(net), loss, Budget(1000), seeded())
    assert len(growth.scores()["new"]) == 6 * len(net.growable_spaces())


@pytest.mark.parametrize(("name", "reach"), [("firefly-split", 0.03), ("firefly-new", 1e-4)])
def test_firefly_of_one_kind_keeps_firefly_s_promise(name: str, reach: float) -> None:
    # a split of a ReLU unit has an effect only where its offset crosses a kink
    net = net_of("resnet9")
    begin(net, widths=4)
    batches = batches_for(net)[:1]
    criterion = dataclasses.replace(CRITERIA.get(name)(), reach=reach)
    before = loss(net.eval(), batches[0]).detach()
    growth = criterion.grow(net, batches, loss, Budget(6), seeded())
    obtained = float(before - loss(net, batches[0]).detach())
    assert len(growth.kept) == 6 and 0.8 < obtained / growth.gain < 1.25
