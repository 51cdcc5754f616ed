"""Invariant 5: counted numbers are those in the file, counted FLOPs those that torch sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from growing_nets import NAMES, begin, images, net_of, part_reads, seeded, two_tasks
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from firefly_cl.network import floats, flops, save_net, stored_bytes
from firefly_cl.network.edits import insert, unlock, widen


@pytest.mark.parametrize("name", NAMES)
def test_counts_agree_with_the_file_and_with_torch(name: str, tmp_path: Path) -> None:
    net = two_tasks(name, dtype=torch.float32)
    insert(net, net.producers(net.growable_spaces()[-1])[0].name, 2, generator=seeded())
    unlock(net, net.growable_spaces()[0], torch.tensor([1]))
    begin(net, 2, 1, part_reads(net, 0.5, seeded(4)))
    net.eval()
    save_net(net, tmp_path / "net.safetensors")
    stored = load_file(tmp_path / "net.safetensors").values()
    numbers = sum(t.numel() for t in stored if t.is_floating_point())
    assert floats(net) == numbers
    assert 4 * numbers < stored_bytes(net) < 4 * numbers + 0.2 * numbers + 64
    for task in range(3):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(images(1, torch.float32), task)
        assert flops(net, task) == counter.get_total_flops(), task


def test_a_plain_network_has_the_parameters_of_the_model_and_its_statistics() -> None:
    from growing_nets import plain_model

    model = plain_model("resnet9")
    expected = sum(p.numel() for p in model.parameters()) + sum(
        b.numel() for b in model.buffers() if b.is_floating_point()
    )
    assert floats(net_of("resnet9")) == expected


def test_masks_cost_a_bit_for_each_task_and_older_unit() -> None:
    net = net_of("mlp", width=4, dtype=torch.float32)
    assert stored_bytes(net) == 4 * floats(net)
    begin(net, widths=2)  # 2 spaces of 4 older units
    assert stored_bytes(net) == 4 * floats(net) + 1
    begin(net, widths=2)  # and 2 of 6: 20 bits
    widen(net, net.growable_spaces()[0], 1, generator=seeded())
    assert stored_bytes(net) == 4 * floats(net) + 3
