"""Products of two tensors: their channels are tied, and each pair of channels is one unit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from growing_nets import CHANNELS, images, net_of, seeded, shake
from safetensors import safe_open
from small_search import SMALL_SEARCH
from torch import Tensor, nn

from firefly_cl.errors import UnsupportedOperation
from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.criterion import criterion_of
from firefly_cl.growth.linear_response import linear_at_zero
from firefly_cl.growth.tiny import unsupported
from firefly_cl.network import FireflyNet, extract, save_net
from firefly_cl.network.deeper import deeper_places
from firefly_cl.network.edits import prune, split


class Gated(nn.Module):
    """A function of the feature maps of two convolutions, one of them through a third."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.one, self.two = (nn.Conv2d(CHANNELS, 4, 3, padding=1) for _ in range(2))
        self.three = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.one(x), self.three(self.two(x).relu()))
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "of maps": lambda a, b: a * b,
    "of maps and means": lambda a, b: torch.mul(a, b.mean((2, 3), keepdim=True).sigmoid()),
    "of means and maps": lambda a, b: b.mean((2, 3), keepdim=True).sigmoid().mul(a),
    "with itself": lambda a, b: a * a + b,
    "swish by hand": lambda a, b: a * a.sigmoid() + b,
    "of a row and a column": lambda a, b: (
        nn.functional.adaptive_avg_pool2d(a, (1, 8)) * nn.functional.adaptive_max_pool2d(b, (8, 1))
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_traced_as_they_are(name: str) -> None:
    torch.manual_seed(0)
    model = Gated(PRODUCTS[name]).double().eval()
    net = FireflyNet.from_module(model, images(2))
    assert set(net.widths()) == {"one", "two"}  # the product ties what it multiplies
    assert {node.name for node in net.producers("one")} == {"one", "three"}
    x = images(5, seed=7)
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(extract(net)(x), model(x), rtol=1e-12, atol=1e-12)
        split(net, "one", torch.tensor([1, 3]))
        torch.testing.assert_close(net(x), model(x), rtol=1e-11, atol=1e-12)


class Attended(nn.Module):
    """Feature maps times one map for all of them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.attend = nn.Conv2d(CHANNELS, 4, 3), nn.Conv2d(CHANNELS, 1, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head((self.one(x) * self.attend(x).sigmoid()).mean((2, 3)))
        return logits


def test_one_map_for_all_channels_is_refused_by_its_line() -> None:
    with pytest.raises(UnsupportedOperation, match=r"\(2, 4, 6, 6\) and \(2, 1, 6, 6\)") as caught:
        FireflyNet.from_module(Attended().double().eval(), images(2))
    assert "test_products.py" in str(caught.value) and "give both as many" in str(caught.value)


def test_logits_may_be_multiplied_by_themselves() -> None:
    class Squashed(Gated):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits * logits.sigmoid()

    model = Squashed(lambda a, b: a + b).double().eval()
    net = FireflyNet.from_module(model, images(2))
    x = images(5, seed=7)
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-12, atol=1e-12)


def test_older_versions_are_kept_from_files_with_products(tmp_path: Path) -> None:
    """They would take the first factor for the product."""
    for name, schema in (("excited", 3), ("mlp", 1)):
        save_net(net_of(name), tmp_path / name)
        with safe_open(tmp_path / name, framework="pt") as file:
            assert json.loads(file.metadata()["firefly_cl"])["schema"] == schema


def test_layers_go_behind_a_product_not_between_its_factors() -> None:
    net = net_of("excited")
    places = deeper_places(net)
    product = next(node.name for node in net.nodes if node.kind == "mul")
    assert product in places and not set(net.node(product).inputs) & set(places)


def test_a_unit_without_one_of_its_factors_is_gone() -> None:
    """A unit's rows in both factors go with it, and the rest answers as a smaller network."""
    torch.manual_seed(0)
    model = Gated(PRODUCTS["of maps and means"]).double().eval()
    net = FireflyNet.from_module(model, images(2))
    prune(net, "one", torch.tensor([0, 2, 3]))
    with torch.no_grad():
        model.head.weight[:, 1] = 0.0
        x = images(5, seed=7)
        torch.testing.assert_close(net(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CRITERIA.names())
def test_every_criterion_grows_units_that_are_products(name: str) -> None:
    net = net_of("excited", dtype=torch.float32)
    space = net.node(next(node.name for node in net.nodes if node.kind == "mul")).layout[0].space
    generator = seeded(3)
    batches = [[images(16, torch.float32, seed), torch.arange(16) % 3] for seed in range(4)]
    settings = SMALL_SEARCH if name == "firefly" else {}
    growth = criterion_of(name, settings).grow(
        net,
        batches,
        lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        Budget(12),
        generator,
    )
    if name == "tiny":
        assert unsupported(net, space) and space not in growth.by_space()
    else:
        assert growth.by_space()[space] > 0
    x = images(5, torch.float32, seed=7)
    with torch.no_grad():
        torch.testing.assert_close(extract(net)(x), net(x), rtol=1e-4, atol=1e-5)


def test_units_that_are_squared_have_no_linear_response() -> None:
    model = Gated(lambda a, b: a * a).double().eval()
    net = FireflyNet.from_module(model, images(2))
    assert unsupported(net, "one") == "mul multiplies units of one"
    assert not linear_at_zero(net, "one")
    plain = FireflyNet.from_module(Gated(lambda a, b: a).double().eval(), images(2))
    assert unsupported(plain, "one") == "" and linear_at_zero(plain, "one")


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0"])
def test_torchvision_models_with_squeeze_and_excitation(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=4, weights=None).double()
    shake(model)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    net = FireflyNet.from_module(model.eval(), x)
    product = next(node for node in net.nodes if node.kind == "mul")
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-8, atol=1e-9)
        split(net, product.layout[0].space, torch.tensor([0]))
        torch.testing.assert_close(net(x), model(x), rtol=1e-8, atol=1e-9)
