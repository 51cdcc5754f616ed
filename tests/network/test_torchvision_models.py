"""torchvision's networks, as they are: which grow without a change of what older tasks answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from growing_nets import seeded, shake
from torch import Tensor, nn

from firefly_cl.errors import ConfigurationError, UnsupportedOperation
from firefly_cl.network import FireflyNet
from firefly_cl.network.edits import split

models = pytest.importorskip("torchvision").models
PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
TAKEN = [
    "resnet18",
    "resnext50_32x4d",
    "densenet121",
    "googlenet",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet0_5",
    "efficientnet_b0",
    "regnet_y_400mf",
]
REFUSED = {
    "squeezenet1_1": "the model has no Linear for a head",
    "shufflenet_v2_x0_5": "no rule for floordiv",
    "convnext_tiny": "no rule for permute",
}


def model_of(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    more = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = getattr(models, name)(num_classes=4, weights=None, **more).double().eval()
    shake(model)
    return model, torch.randn(2, 3, 32, 32, generator=seeded(), dtype=torch.float64)


@pytest.mark.parametrize("name", TAKEN)
@torch.no_grad()
def test_it_grows_and_its_older_answers_stay(name: str) -> None:
    model, x = model_of(name)
    net = FireflyNet.from_module(model, x)
    older = net(x, 0)
    torch.testing.assert_close(older, model(x), rtol=1e-8, atol=1e-9)
    split(net, next(iter(net.growable_spaces())), torch.tensor([0]))
    torch.testing.assert_close(net(x, 0), older, rtol=1e-8, atol=1e-9)
    net.freeze()
    older = net(x, 0)
    net.begin_task(3, 1, generator=seeded())
    assert torch.equal(net(x, 0), older)
    assert net(x, 1).shape == (2, 3) and bool(net(x, 1).isfinite().all())
    assert documented(name, "grow as they are")


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_a_reason(name: str) -> None:
    model, x = model_of(name)
    with pytest.raises((ConfigurationError, UnsupportedOperation), match=REFUSED[name]):
        FireflyNet.from_module(model, x)
    assert documented(name, "are refused")


def documented(name: str, what: str) -> bool:
    """Whether the sentence of docs/extending.md that says `what` of networks names this one's."""
    (sentence,) = [each for each in " ".join(PAGE.split()).split(". ") if what in each]
    families = re.findall(r"`(\w+)`", sentence)
    return any(name.startswith(family) for family in families)
