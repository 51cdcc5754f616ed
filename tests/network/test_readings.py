"""Readings: a network of two tasks counted by hand, and any network by its own arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firefly_cl.network import FireflyNet
from firefly_cl.network.readings import HEAD, Reading, readings
from firefly_cl.network.space import GIVEN
from firefly_cl.zoo import BACKBONES

torch.set_num_threads(1)


def test_two_tasks_by_hand() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    net = FireflyNet.from_module(model, torch.zeros(2, 5))
    net.freeze()
    first, second = net.growable_spaces()
    # the second task has 2 units in the first space and 1 in the second; it reads units 0 and 3
    # of the first space's older ones, and none of the second's
    reads = {first: torch.tensor([0, 3]), second: torch.tensor([], dtype=torch.int64)}
    net.begin_task(2, {first: 2, second: 1}, reads)
    (given,) = [name for name in net.spaces if name not in (first, second)]
    assert set(readings(net)) == {
        Reading(given, GIVEN, first, 0, 5),
        Reading(given, GIVEN, first, 1, 5),
        Reading(first, 0, second, 0, 4),
        Reading(first, 0, second, 1, 2),
        Reading(first, 1, second, 1, 2),
        Reading(second, 0, HEAD, 0, 3),
        Reading(second, 1, HEAD, 1, 1),
    }


@pytest.mark.parametrize("backbone", ["resnet9", "mobilenetv1"])
def test_a_task_that_may_read_all_reads_every_older_unit(backbone: str) -> None:
    model = BACKBONES.get(backbone)(n_classes=2, in_channels=1, image_size=8, constant_width=4)
    net = FireflyNet.from_module(model, torch.zeros(2, 1, 8, 8))
    net.freeze()
    net.begin_task(2, 1)
    found = readings(net)
    assert len(found) == len({(r.source, r.owner, r.target, r.reader) for r in found})
    assert {r.target for r in found} == {*net.growable_spaces(), HEAD}
    for reading in found:
        if reading.owner != GIVEN:
            width = net.spaces[reading.source].width(reading.owner)
            assert reading.units == width and reading.owner <= reading.reader
    heads = [(r.reader, r.owner) for r in found if r.target == HEAD]
    assert sorted(heads) == [(0, 0), (1, 0), (1, 1)]
