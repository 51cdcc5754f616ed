"""What a plan gives a task: seed units, and the older units that it reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firefly_cl.continual.plan import Plan
from firefly_cl.errors import ConfigurationError
from firefly_cl.network import FireflyNet, extract, flops
from firefly_cl.network.deeper import deeper_places
from firefly_cl.network.edits import insert, prune
from firefly_cl.zoo import BACKBONES


def grown(plan: Plan, tasks: int = 4) -> FireflyNet:
    generator = torch.Generator().manual_seed(0)
    model = BACKBONES.get("resnet9")(n_classes=3, width=0.125, image_size=16, generator=generator)
    net = FireflyNet.from_module(model, torch.zeros(2, 3, 16, 16)).double()
    for _ in range(1, tasks):
        net.freeze()
        net.begin_task(3, plan.seed_widths(net), plan.reads(net), generator)
    return net.eval()


def test_seed_widths_are_shares_of_the_first_tasks() -> None:
    net = grown(Plan(seed=0.5, early=0.5, shared=0.5, private=0.75), tasks=2)
    first, second = zip(*(widths for widths in net.widths().values()), strict=True)
    stem, wide, *inner = second
    assert (stem, wide) == (first[0] // 4, first[1] // 4)  # both on the finest maps
    assert inner[0] == first[2] // 2  # shared
    assert inner[1:] == [3 * width // 4 for width in first[3:]]  # private


def test_a_strided_stem_has_the_finest_maps() -> None:
    for stride in (1, 2):
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
        )  # fmt: skip
        net = FireflyNet.from_module(model, torch.zeros(2, 3, 16, 16))
        assert list(Plan(seed=1.0, early=0.5).seed_widths(net).values()) == [8, 16]


@pytest.mark.parametrize("at", [0, -1])
def test_what_is_shared_stays_so_when_layers_are_inserted(at: int) -> None:
    plan = Plan(start="copies", shared=0.5)
    net = grown(plan, 2)
    shared = net.growable_spaces()[:3]
    inserted = [insert(net, deeper_places(net)[at], 2).space for _ in range(2)]
    net.freeze()
    begun = plan.reads(net)
    read = {name for name in net.growable_spaces() if len(begun[name])}
    assert read == {*shared, *(inserted if at == 0 else ())}
    if at == -1:  # private, as what they write to is: copies
        assert [plan.seed_widths(net)[name] for name in inserted] == [2, 2]


def test_private_spaces_are_neither_read_nor_computed_by_later_tasks() -> None:
    plan = Plan(shared=0.5)
    net = grown(plan)
    names = net.growable_spaces()
    for task in range(1, 4):
        active = net.tasks[task].active
        assert all(len(active[name]) == net.spaces[name].before(task) for name in names[:3])
        assert all(len(active[name]) == 0 for name in names[3:])
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    for task in range(4):
        torch.testing.assert_close(extract(net, task)(x), net(x, task), rtol=1e-9, atol=1e-12)


def test_what_lies_behind_the_shared_spaces_costs_later_tasks_nothing() -> None:
    one, all_ = grown(Plan(shared=0.5), 2), grown(Plan(shared=1.0), 2)
    wider = Plan(shared=0.5, private=2.0)
    two = grown(wider, 2)
    for net in (one, two):
        net.freeze()
        plan = Plan(shared=0.5)
        net.begin_task(3, plan.seed_widths(net), plan.reads(net))
    assert flops(one, 2) == flops(two, 2)
    assert flops(one, 1) < flops(all_, 1)


@pytest.mark.parametrize("setting", [{"shared": 1.5}, {"shared": -0.1}, {"private": -1.0}])
def test_impossible_shares_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="must be in"):
        Plan(**setting)


def test_copies_start_the_spaces_that_are_not_shared() -> None:
    plan = Plan(start="copies", shared=0.5, seed=0.25)
    net = grown(plan, tasks=2)
    names = net.growable_spaces()
    assert list(plan.originals(net)) == names[3:]
    widths = net.widths()
    assert all(widths[name][1] == widths[name][0] for name in names[3:])
    assert all(widths[name][1] < widths[name][0] for name in names[:3])
    assert Plan().originals(net) == {}
    with pytest.raises(ConfigurationError, match="use random, copies or nearest"):
        Plan(start="copy")


def test_new_units_join_copies_of_a_pruned_network() -> None:
    plan = Plan(start="copies", shared=0.0, private=0.75, early=1.0)
    net = grown(plan, tasks=2)
    narrow, *rest = net.growable_spaces()
    first = {name: widths[0] for name, widths in net.widths().items()}
    prune(net, narrow, torch.arange(first[narrow]) < 2)
    net.freeze()
    widths = plan.seed_widths(net)
    assert widths[narrow] == round(0.75 * first[narrow]) > 2
    assert all(widths[name] == first[name] for name in rest)  # these are no fewer
    net.begin_task(3, widths, plan.reads(net))
    assert plan.originals(net)[narrow].tolist() == net.spaces[narrow].owned(1).tolist()
