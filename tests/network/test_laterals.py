"""Lateral heads: logits that a task draws from the frozen features of older tasks."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from firefly_cl.errors import EditError, FileError
from firefly_cl.network import FireflyNet, extract, floats, flops, load_net, save_net
from firefly_cl.network.deeper import deeper_places
from firefly_cl.network.edits import insert
from firefly_cl.network.laterals import add_lateral_head, feature_count, features, tapped
from firefly_cl.network.readings import HEAD, readings
from firefly_cl.zoo import BACKBONES

ZOO = BACKBONES.names()


def network(name: str, shared: bool = True) -> FireflyNet:
    """Three tasks, the last one open; older units are read or not."""
    generator = torch.Generator().manual_seed(0)
    model = BACKBONES.get(name)(
        n_classes=2, in_channels=3, image_size=16, constant_width=4, generator=generator
    )
    net = FireflyNet.from_module(model, torch.zeros(2, 3, 16, 16))
    for classes in (3, 2):
        net.freeze()
        none = {s: torch.zeros(0, dtype=torch.int64) for s in net.growable_spaces()}
        net.begin_task(classes, 2, None if shared else none, generator)
    for part in net.modules():  # statistics that tell channels apart
        for key, value in part.named_buffers(recurse=False):
            if value.is_floating_point():
                drawn = torch.rand(value.shape, generator=generator)
                value.copy_(drawn + 0.5 if "var" in key else drawn - 0.5)
    return net.eval()


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def drawn_head(net: FireflyNet, sources: tuple[int, ...] = (0, 1)) -> None:
    generator = torch.Generator().manual_seed(2)
    classes, like = net.tasks[-1].classes, next(net.parameters())
    weights = {
        source: torch.randn(classes, feature_count(net, source), generator=generator).to(like)
        for source in sources
    }
    add_lateral_head(net, weights, torch.randn(classes, generator=generator).to(like))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ZOO)
def test_logits_are_those_of_the_task_and_a_linear_map_of_features(name: str, shared: bool) -> None:
    net = network(name, shared)
    before = [net(images(), task) for task in range(3)]
    drawn_head(net)
    lateral = net.lateral(2)
    assert lateral is not None
    expected = before[2] + lateral.bias
    for source in (0, 1):
        found = features(net, source, images())
        assert found.shape == (4, feature_count(net, source))
        expected = expected + found @ lateral.weights[str(source)].T
    assert torch.allclose(net(images(), 2), expected, atol=1e-5)
    for task in (0, 1):
        assert torch.equal(net(images(), task), before[task])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ZOO)
def test_the_extracted_task_has_the_same_logits(name: str, shared: bool) -> None:
    net = network(name, shared)
    drawn_head(net)
    module = extract(net, 2)
    expected = net(images(), 2).detach()
    assert torch.allclose(module(images()), expected, atol=1e-4 * float(expected.abs().max()))
    heads = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    assert all(head.out_features != net.tasks[1].classes for head in heads)


@pytest.mark.parametrize("name", ZOO)
def test_costs_are_those_of_the_pass(name: str) -> None:
    net = network(name)
    before = floats(net)
    drawn_head(net)
    added = net.tasks[-1].classes * (feature_count(net, 0) + feature_count(net, 1) + 1)
    assert floats(net) - before == added
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images(1), 2)
    assert flops(net, 2) == counter.get_total_flops()


@pytest.mark.parametrize("name", ZOO)
def test_files_keep_it_bit_for_bit(name: str, tmp_path: Path) -> None:
    net = network(name)
    drawn_head(net, (1,))
    net.freeze()
    save_net(net, tmp_path / "net.safetensors")
    loaded, _ = load_net(tmp_path / "net.safetensors")
    assert torch.equal(loaded(images(), 2), net(images(), 2))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_file_whose_lateral_head_does_not_fit_is_refused(tmp_path: Path) -> None:
    net = network("mlp")
    drawn_head(net)
    lateral = net.lateral(2)
    assert lateral is not None
    lateral.weights["1"] = torch.nn.Parameter(torch.zeros(2, 3), False)
    save_net(net, tmp_path / "net.safetensors")
    with pytest.raises(FileError, match="features of task 1"):
        load_net(tmp_path / "net.safetensors")


def test_features_are_of_own_units_after_their_activation() -> None:
    net = network("resnet9")
    nodes = tapped(net)
    assert {s.space for node in nodes for s in node.layout} == set(net.growable_spaces())
    assert all(node.kind in ("map", "add") for node in nodes)
    units = sum(net.spaces[name].width(1) for name in net.growable_spaces())
    assert feature_count(net, 1) == 2 * units
    assert feature_count(network("mlp"), 1) == 2 * 2  # two layers of two units, one point each


@pytest.mark.parametrize("name", ["resnet9", "vgg11", "concat", "mobilenetv1", "mlp-bn"])
def test_layers_that_later_tasks_insert_change_nothing_of_it(name: str, tmp_path: Path) -> None:
    net = network(name)
    drawn_head(net)
    net.freeze()
    before = net(images(), 2)
    net.begin_task(2, 2, generator=torch.Generator().manual_seed(3))
    places = {*deeper_places(net), *(n.name for n in net.nodes if "pool" in n.name)}
    inserted, every = 0, len(places) // 12 + 1  # nets of many layers repeat a block
    for place in sorted(places)[::every]:
        deeper = copy.deepcopy(net)
        try:
            insert(deeper, place, 2, generator=torch.Generator().manual_seed(4))
        except EditError:
            continue
        inserted += 1
        assert torch.equal(deeper(images(), 2), before)
        save_net(deeper, tmp_path / "net.safetensors")
        again, _ = load_net(tmp_path / "net.safetensors")
        assert torch.equal(again(images(), 2), before)
        assert torch.allclose(extract(deeper, 2).eval()(images()), before, atol=1e-5)
        drawn_head(deeper, (2,))  # of a task without units in the inserted layer
        deeper.freeze()
        deeper.begin_task(2, 2, generator=torch.Generator().manual_seed(5))
        drawn_head(deeper, (2, 3))  # and of the one that inserted it
        assert deeper(images(), 4).shape == (4, 2)
    assert inserted > 1


@pytest.mark.parametrize("name", ["mlp", "resnet9"])
def test_a_gradient_reaches_the_image_through_it(name: str) -> None:
    net = network(name, shared=False).double()
    drawn_head(net, (1,))
    net.freeze()
    x = images(1).double().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).double()
    (slope,) = torch.autograd.grad(net(x, 2)[0, 0], x)
    with torch.no_grad():
        ahead, behind = (net(x + step * direction, 2)[0, 0] for step in (1e-6, -1e-6))
    assert float((slope * direction).sum()) == pytest.approx(float((ahead - behind) / 2e-6), 1e-4)


def test_reuse_and_drawings_tell_of_it() -> None:
    net = network("resnet9", shared=False)
    assert net.reuse()[2] == [0, 0, 0]
    drawn_head(net, (1,))
    units = sum(net.spaces[name].width(1) for name in net.growable_spaces())
    assert net.reuse()[2] == [0, units, 0]
    told = [r for r in readings(net) if r.reader == 2 and r.target == HEAD and r.owner == 1]
    assert sum(r.units for r in told) == units


def test_it_goes_with_the_head_that_it_was_made_for() -> None:
    net = network("mlp")
    drawn_head(net)
    net.replace_head(5)
    assert net.lateral(2) is None
    assert net(images(), 2).shape == (4, 5)


def test_what_cannot_be_read_is_refused() -> None:
    net = network("mlp")
    zeros = torch.zeros(2, feature_count(net, 1))
    with pytest.raises(EditError, match="cannot read features of task 2"):
        add_lateral_head(net, {2: zeros}, torch.zeros(2))
    with pytest.raises(EditError, match="a column for each feature"):
        add_lateral_head(net, {1: zeros[:, 1:]}, torch.zeros(2))
    with pytest.raises(EditError, match="for 2 classes"):
        add_lateral_head(net, {1: zeros}, torch.zeros(3))
    net.freeze()
    with pytest.raises(EditError, match="is frozen"):
        add_lateral_head(net, {1: zeros}, torch.zeros(2))
