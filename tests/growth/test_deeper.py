"""Deeper growth: layers z + h(z) whose hidden units compete with width for one budget."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from growing_nets import (
    NAMES,
    VARIED,
    answers,
    assert_same_state,
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

from firefly_cl.errors import BudgetTooSmall, EditError
from firefly_cl.growth.budget import COSTS, Budget, Candidate, growth_cost, unit_cost
from firefly_cl.growth.candidates import Candidates, propose, propose_layers
from firefly_cl.growth.commit import commit
from firefly_cl.growth.criterion import Growth, Model
from firefly_cl.growth.execution import CandidateExecution
from firefly_cl.growth.firefly import Firefly
from firefly_cl.network import FireflyNet, extract, floats, flops, load_net, save_net
from firefly_cl.network.deeper import deeper_places
from firefly_cl.network.edits import insert, widen
from firefly_cl.network.rebuild import migrate

Batch = tuple[Tensor, Tensor]
FEW = ("mlp-bn", "resnet9", "concat")
ONLY_DEEPER = Firefly(news=0, copies=0, splits=False, depths=4, steps=3, reach=1e-4)


def loss(model: Model, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batch_for(net: FireflyNet, n: int = 16) -> Batch:
    return images(n, seed=3), torch.arange(n) % net.tasks[-1].classes


@torch.no_grad()
def loss_of(net: FireflyNet, batch: Batch) -> float:
    return float(loss(net.eval(), batch))


def grown(net: FireflyNet, units: int = 4) -> Growth:
    return ONLY_DEEPER.grow(net, [batch_for(net)], loss, Budget(units), seeded())


# --- exactly an identity ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_at_eps_0_every_place_keeps_the_function(name: str) -> None:
    net = two_tasks(name).eval()
    x, places = images(), deeper_places(net)
    before = answers(net, x)
    candidates = propose_layers(net, places, 3, seeded())
    with torch.no_grad():
        assert torch.equal(CandidateExecution(net, candidates).run(x), before[1])
    for place in places:
        layer = candidates[place]
        insert(net, place, 3, incoming=layer.incoming)
        assert all(torch.equal(*pair) for pair in zip(answers(net, x), before, strict=True)), place


@pytest.mark.parametrize("name", ["mlp-bn", "resnet9", "grouped", "concat"])
def test_values_given_to_insert_are_those_of_the_layer(name: str) -> None:
    """h(z) by torch's own functions, from z as the graph gives it."""
    net = two_tasks(name).eval()
    x, place = images(), deeper_places(net)[1]
    (layer,) = propose_layers(net, [place], 2, seeded()).values()
    candidates = {place: layer}
    layer.hidden_gates.fill_(1.0)
    with torch.no_grad():
        expected = CandidateExecution(net, candidates).run(x)
        found = layer.statistics
        assert found is not None
        positions = len(x) * net.node(place).size
        found.var *= (positions - 1) / positions
        insert(net, place, 2, incoming=layer.incoming, outgoing=layer.outgoing, statistics=found)
    torch.testing.assert_close(answers(net, x)[1], expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(answers(net, x)[1], answers(two_tasks(name), x)[1])


@pytest.mark.parametrize("key", ["incoming", "outgoing", "statistics"])
def test_values_of_another_shape_are_refused(key: str) -> None:
    net = two_tasks("resnet9")
    before, nodes = snapshot(net), list(net.nodes)
    place = deeper_places(net)[0]
    layer = propose_layers(net, [place], 2, seeded())[place]
    CandidateExecution(net.eval(), {place: layer}).run(images())
    with pytest.raises(EditError, match="cannot have shape"):
        insert(net, place, 3, **{key: getattr(layer, key)})
    assert_same_state(net, before)
    assert net.nodes == nodes


# --- places -------------------------------------------------------------------------------------


def test_places_lie_inside_and_between_blocks_and_behind_depthwise_convolutions() -> None:
    residual = deeper_places(two_tasks("resnet9"))
    assert residual == [
        "features_0_2",
        "features_1_3",
        "features_2_branch_0_2",
        "features_2_branch_1_2",
        "add",
        "features_3_3",
        "features_4_2",
        "features_5_branch_0_2",
        "features_5_branch_1_2",
        "pool",
    ]
    net = two_tasks("mobilenetv1")
    before = {net.node(net.node(net.node(p).inputs[0]).inputs[0]).name for p in deeper_places(net)}
    convolutions = {node.name for node in net.nodes if node.kind == "conv"}
    assert before == convolutions, "behind the activation of each, depthwise or not"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_averages_comes_between_a_place_and_what_reads_it(name: str) -> None:
    net = two_tasks(name)
    places = deeper_places(net)
    assert places and not set(places) & set(net.spaces)
    for place in places:
        readers = [node for node in net.nodes if place in node.inputs]
        assert not any(node.kind == "norm" for node in readers)
        operations = {str(node.attributes.get("operation")) for node in readers}
        assert not operations & {"relu", "max_pool2d"}


@pytest.mark.parametrize("name", VARIED)
def test_growing_deeper_makes_no_more_places(name: str) -> None:
    net = two_tasks(name)
    before = deeper_places(net)
    for place in before:
        insert(net, place, 1)
    after = deeper_places(net)
    assert after == [f"{place}_deeper1_add" for place in before]
    insert(net, after[0], 1)
    assert len(deeper_places(net)) == len(before)
    insert(net, before[0], 1)
    assert len(deeper_places(net)) == len(before)


def test_a_map_of_one_pixel_gets_no_kernel_that_reads_beside_it() -> None:
    net = two_tasks("resnet9")
    for place in deeper_places(net):
        insert(net, place, 1)
    kernels = {
        net.node(node.inputs[0]).size: node.attributes["kernel"]
        for node in net.nodes
        if node.kind == "conv" and node.name.endswith("_deeper1")
    }
    assert kernels.pop(1) == [1, 1] and kernels
    assert all(kernel == [3, 3] for kernel in kernels.values())


def test_a_place_without_own_units_is_none() -> None:
    net = net_of("resnet9")
    begin(net, widths=dict.fromkeys(net.growable_spaces(), 0) | {net.growable_spaces()[1]: 2})
    own = net.growable_spaces()[1]
    assert deeper_places(net)
    for place in deeper_places(net):
        assert {s.space for s in net.node(place).layout} == {own}


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIED)
def test_a_score_is_the_slope_of_the_loss_in_the_outgoing_weights(name: str) -> None:
    net = two_tasks(name).eval()
    batch, places = batch_for(net), deeper_places(net)
    candidates = propose_layers(net, places, 2, seeded())
    costs = dict.fromkeys(places, 1)
    criterion = Firefly(depths=2, reach=1.0)
    found = criterion.score(net, candidates, [batch], loss, costs)
    assert {candidate.space for candidate in found} == set(places)
    largest = max(candidate.gain for candidate in found)
    for candidate in found[:: 1 + len(found) // 10]:
        changed = copy.deepcopy(net)
        (edit,) = commit(changed, candidates, [candidate], 1.0)
        outgoing = changed.layers[f"{edit.space}_out"].block(1).from_own
        norm = changed.layers[f"{edit.space}_norm"].block(1)
        positions = len(batch[1]) * changed.node(edit.space).size
        norm.running_var *= (positions - 1) / positions
        whole, step, sides = outgoing.detach().clone(), 1e-5, []
        for scale in (step, -step):
            with torch.no_grad():
                outgoing.copy_(scale * whole)
            sides.append(loss_of(changed, batch))
        slope = (sides[0] - sides[1]) / (2 * step)
        assert -slope == pytest.approx(candidate.gain, rel=1e-3, abs=1e-4 * largest), candidate


@pytest.mark.parametrize("name", FEW)
def test_the_loss_falls_by_what_deeper_units_promise(name: str) -> None:
    net = net_of(name)
    begin(net, widths=4)
    batch = batch_for(net, 64 if name == "mlp-bn" else 16)
    before, frozen = loss_of(net, batch), answers(net, batch[0])[0]
    growth = ONLY_DEEPER.grow(net, [batch], loss, Budget(6), seeded())
    assert growth.by_kind() == {"deeper": 6} and growth.gain > 0
    assert set(growth.by_space()) <= {node.name for node in net.nodes}
    assert 0.8 < (before - loss_of(net, batch)) / growth.gain < 1.25
    assert torch.equal(answers(net, batch[0])[0], frozen)
    inserted = [space for space in net.spaces if "_deeper" in space]
    assert sum(net.spaces[space].width(1) for space in inserted) == 6
    assert len(inserted) == len(growth.by_space()), "no unit won, no layer"


@pytest.mark.parametrize("name", VARIED)
def test_the_loss_falls_by_what_all_kinds_promise_together(name: str) -> None:
    net = net_of(name)
    begin(net, widths=4)
    batch = batch_for(net)
    before = loss_of(net, batch)
    criterion = Firefly(news=4, copies=4, depths=4, reach=1e-4, steps=3)
    growth = criterion.grow(net, [batch], loss, Budget(12), seeded())
    assert len(growth.kept) == 12
    assert 0.8 < (before - loss_of(net, batch)) / growth.gain < 1.25, growth.by_kind()


@pytest.mark.parametrize("name", VARIED)
def test_layers_follow_the_width_that_is_committed_with_them(name: str) -> None:
    """With gates near 0 no function changes, whatever is committed together."""
    net = two_tasks(name).eval()
    x, places, spaces = images(), deeper_places(net), net.growable_spaces()
    candidates: Candidates = {
        **propose(net, spaces, 2, 2, seeded()),
        **propose_layers(net, places, 2, seeded()),
    }
    CandidateExecution(net, candidates).run(x)
    kept = [
        Candidate(kind, name, int(units[-1]), 1.0, 1)
        for name, each in candidates.items()
        for kind, units in each.kinds().items()
    ]
    before = answers(net, x)
    edits = commit(net, candidates, kept, 1e-9)
    assert close([before[0]], [answers(net, x)[0]])
    torch.testing.assert_close(answers(net, x)[1], before[1], rtol=1e-5, atol=1e-5)
    assert len(edits) == 3 * len(spaces) + len(places)


# --- costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_costs_what_inserting_it_adds(name: str) -> None:
    net = two_tasks(name)
    for place in deeper_places(net)[::3]:
        space = net.node(place).layout[0].space
        for hidden, wider in ((1, 0), (3, 2)):
            changed = copy.deepcopy(net)
            more = {place: hidden} | ({space: wider} if wider else {})
            predicted = {cost: growth_cost(net, more, cost) for cost in COSTS}
            insert(changed, place, hidden)
            if wider:
                widen(changed, space, wider)
            sizes = [
                {"units": each.units(), "parameters": floats(each), "flops": flops(each)}
                for each in (net, changed)
            ]
            assert {cost: sizes[1][cost] - sizes[0][cost] for cost in COSTS} == predicted, more


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", FEW)
def test_a_step_stays_within_its_budget_and_that_of_floats(name: str, cost: str) -> None:
    net = two_tasks(name)
    places = deeper_places(net)
    amount = 4 * max(unit_cost(net, place, cost) for place in places)
    room = 3 * max(unit_cost(net, place, "parameters") for place in places)
    before = {"units": net.units(), "parameters": floats(net), "flops": flops(net)}
    criterion = Firefly(news=2, copies=2, depths=4, steps=1)
    growth = criterion.grow(
        net, [batch_for(net)], loss, Budget(amount, cost, floats=room), seeded()
    )
    after = {"units": net.units(), "parameters": floats(net), "flops": flops(net)}
    assert 0 < after[cost] - before[cost] <= amount
    assert after["parameters"] - before["parameters"] <= room
    assert len(growth.kept) == after["units"] - before["units"] > 0


def test_a_budget_that_pays_for_hidden_units_alone_is_enough() -> None:
    net = two_tasks("resnet9")
    spaces = min(unit_cost(net, space, "flops") for space in net.growable_spaces())
    places = min(unit_cost(net, place, "flops") for place in deeper_places(net))
    assert places < spaces
    batch = batch_for(net)
    with pytest.raises(BudgetTooSmall):
        Firefly(depths=2).grow(net, [batch], loss, Budget(places - 1, "flops"), seeded())
    growth = Firefly(depths=2, steps=1).grow(net, [batch], loss, Budget(places, "flops"), seeded())
    assert growth.by_kind() == {"deeper": 1}


# --- training and later tasks ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("name", FEW)
def test_inserted_parameters_train_and_keep_moments(name: str, kind: str) -> None:
    net = two_tasks(name)
    batch = batch_for(net)
    *features, weight, bias = net.trainable()
    groups = [{"params": features}, {"params": [weight, bias], "lr": 0.01}]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, 0.05, momentum=0.9)
    if kind == "adamw":
        optimizer = torch.optim.AdamW(groups, 0.01)
    train_steps(net, *batch, steps=2, optimizer=optimizer)
    growth = grown(net)
    for edit in growth.edits:
        migrate(optimizer, edit)
    in_order = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert in_order == [id(p) for p in net.trainable()]
    assert len(optimizer.param_groups[1]["params"]) == 2
    added = [p for edit in growth.edits for p in edit.added]
    assert len(added) == 6 * len(growth.edits), "of two layers two blocks each, and a norm"
    before = [p.detach().clone() for p in added]
    train_steps(net, *batch, steps=2, optimizer=optimizer)
    for parameter, old in zip(added, before, strict=True):
        if parameter.numel():
            assert not torch.equal(parameter, old)
            assert len(optimizer.state[parameter])


@pytest.mark.parametrize("training", [False, True])
def test_new_layers_are_in_the_mode_of_the_network(training: bool) -> None:
    net = two_tasks("resnet9").train(training)
    grown(net)
    assert {module.training for module in net.modules()} == {training}


@pytest.mark.parametrize("name", VARIED)
def test_later_tasks_read_inserted_layers_and_change_no_older_answer(
    name: str, tmp_path: Path
) -> None:
    net = net_of(name)
    assert grown(net).by_kind() == {"deeper": 4}
    x = images()
    train_steps(net, *batch_for(net))
    net.freeze()
    first = answers(net, x)[0]
    begin(net)
    hidden = [space for space in net.growable_spaces() if "_deeper" in space]
    assert all(len(net.tasks[1].reads[space]) for space in hidden)
    train_steps(net, *batch_for(net))
    batch = batch_for(net)
    before = loss_of(net, batch)
    everything = Firefly(news=2, copies=2, depths=2, reach=1e-4, steps=2)
    growth = everything.grow(net, [batch], loss, Budget(12), seeded())
    assert 0.8 < (before - loss_of(net, batch)) / growth.gain < 1.25
    for place in deeper_places(net):
        insert(net, place, 2, outgoing=None)
    train_steps(net, *batch_for(net))
    assert torch.equal(answers(net, x)[0], first)
    net.freeze()
    save_net(net, tmp_path / "net.safetensors")
    loaded, _ = load_net(tmp_path / "net.safetensors")
    assert deeper_places(loaded) == deeper_places(net)
    found = answers(net, x)
    assert all(torch.equal(*pair) for pair in zip(answers(loaded, x), found, strict=True))
    for task, expected in enumerate(found):
        torch.testing.assert_close(extract(net, task)(x), expected, rtol=1e-9, atol=1e-10)


def test_spaces_stay_in_the_order_of_the_graph() -> None:
    net = two_tasks("resnet9")
    first = net.growable_spaces()[0]
    place = deeper_places(net)[0]
    hidden = insert(net, place, 2).space
    assert net.growable_spaces()[:2] == [first, hidden]


@pytest.mark.parametrize("name", VARIED)
def test_a_task_may_leave_an_inserted_layer_alone(name: str) -> None:
    """Without own units and without reading any, h adds nothing; it can grow there again."""
    net = net_of(name)
    hidden = insert(net, deeper_places(net)[-1], 2).space
    train_steps(net, *batch_for(net))
    net.freeze()
    x = images()
    first = answers(net, x)[0]
    reads = {space: torch.arange(net.spaces[space].before(1)) for space in net.growable_spaces()}
    reads[hidden] = torch.zeros(0, dtype=torch.int64)
    begin(net, widths=dict.fromkeys(net.growable_spaces(), 2) | {hidden: 0}, reads=reads)
    batch = batch_for(net)
    spaces = net.growable_spaces()
    candidates = propose(net, spaces, 2, 0, seeded())
    scored = Firefly(reach=1.0).score(net, candidates, [batch], loss, dict.fromkeys(spaces, 1))
    kept = [candidate for candidate in scored if candidate.space == hidden]
    assert max(candidate.gain for candidate in kept) > 1e-6
    before = loss_of(net, batch)
    commit(net, candidates, kept[:1], 1e-4)
    obtained = before - loss_of(net, batch)
    assert obtained == pytest.approx(1e-4 * kept[0].gain, rel=0.1)
    train_steps(net, *batch)
    assert torch.equal(answers(net, x)[0], first)
