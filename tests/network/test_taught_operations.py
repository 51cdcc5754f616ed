"""Operations that the tracer does not know can be taught, and files of them name them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from growing_nets import images
from odd_nets import Parts, pooled
from torch import Tensor, nn

from firefly_cl.errors import FileError, UnsupportedOperation
from firefly_cl.network import (
    FireflyNet,
    extract,
    load_net,
    map_call,
    map_module,
    register_map,
    register_rule,
    save_net,
)
from firefly_cl.network.graph import MAPS
from firefly_cl.network.trace import CALL_RULES, MODULE_RULES


class Wave(nn.Module):
    """x + sin(frequency x), unknown to the tracer until it is taught."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        return wave(x, self.frequency)


def wave(x: Tensor, frequency: float) -> Tensor:
    return x + torch.sin(frequency * x)


@pytest.fixture
def untaught() -> Iterator[None]:
    """Forget afterwards what a test teaches."""
    yield
    MAPS.pop("wave", None)
    MODULE_RULES.pop(Wave, None)
    CALL_RULES.pop(torch.sin, None)


def test_a_new_activation_can_be_taught(untaught: None, tmp_path: Path) -> None:
    model = Parts(lambda m, x: m.head4(pooled(m.wave(m.a(x)))))
    model.wave = Wave(1.7)
    model.double().eval()
    with pytest.raises(UnsupportedOperation):
        FireflyNet.from_module(model, images(2))
    register_map("wave", wave)
    register_rule(Wave, map_module("wave", "frequency"))
    net = FireflyNet.from_module(model, images(2)).eval()
    save_net(net, tmp_path / "net.safetensors")
    loaded, _ = load_net(tmp_path / "net.safetensors")
    x = images(4)
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-9, atol=1e-10)
        assert torch.equal(loaded(x), net(x))
        torch.testing.assert_close(extract(loaded)(x), model(x), rtol=1e-9, atol=1e-10)
    with pytest.raises(UnsupportedOperation, match="already there"):
        register_map("wave", lambda x: x)
    MAPS.pop("wave")
    with pytest.raises(FileError, match="'wave' that this process does not know: teach it"):
        load_net(tmp_path / "net.safetensors")


def test_a_new_function_can_be_taught(untaught: None) -> None:
    model = Parts(lambda m, x: m.head4(pooled(torch.sin(m.a(x))))).double().eval()
    with pytest.raises(UnsupportedOperation, match="no rule for sin"):
        FireflyNet.from_module(model, images(2))
    register_map("wave", torch.sin)
    register_rule(torch.sin, map_call("wave"))
    net = FireflyNet.from_module(model, images(2))
    with torch.no_grad():
        torch.testing.assert_close(net(images()), model(images()), rtol=1e-9, atol=1e-10)
