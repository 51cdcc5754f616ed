"""Importances against a loop over images: every kind of layer, and layers that are called twice."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firefly_cl.baselines import importances
from firefly_cl.baselines.importances import mean_over_images
from firefly_cl.continual.loading import Pixels
from firefly_cl.scenarios import Images

PIXELS = Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), flip=False)


class Varied(nn.Module):
    """Plain, strided, grouped, mirrored, repeated and tied layers, and one on rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.strided = nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.mirrored = nn.Conv2d(6, 5, 3, padding="same", padding_mode="reflect")
        self.rows = nn.Linear(4, 3)
        self.flat = nn.Linear(60, 7)
        self.tied, self.alike = nn.Linear(7, 7), nn.Linear(7, 7)
        self.alike.weight = self.tied.weight
        self.idle = nn.Linear(2, 2)
        self.heads = nn.ModuleDict({"0": nn.Linear(7, 3), "1": nn.Linear(7, 3)})

    def forward(self, x: Tensor, task: int) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.silu(self.grouped(self.strided(x)))
        x = self.mirrored(F.silu(self.twice(F.silu(self.twice(x)))))
        x = F.silu(self.flat(F.silu(self.rows(x)).flatten(1)), inplace=True)
        x = F.silu(self.alike(F.silu(self.tied(x))))
        return self.heads[str(task)](x)


def energy(logits: Tensor, _: Tensor) -> Tensor:
    return logits.square().sum()


@pytest.mark.parametrize(
    ("objective", "of"),
    [(F.cross_entropy, torch.square), (energy, torch.abs)],
    ids=["fisher", "sensitivity"],
)
def test_importances_are_those_of_a_loop_over_images(
    objective: importances.Objective,
    of: importances.Elementwise,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importances, "CHUNK", 2)
    torch.manual_seed(0)
    model = Varied()
    model.norm.running_mean.uniform_()
    pictures = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 2, 1, 1, 0])
    of_tasks = torch.tensor([1, 0, 1, 1, 0])
    images = Images(pictures, labels, -1, of_tasks)

    found = mean_over_images(model, images, PIXELS, objective, of)

    model.eval()
    shared = {name: w for name, w in model.named_parameters() if not name.startswith("heads")}
    expected = {name: torch.zeros_like(w) for name, w in shared.items()}
    for picture, label, task in zip(pictures, labels, of_tasks.tolist(), strict=True):
        model.zero_grad()
        objective(model(picture[None] / 255, task), label[None]).backward()
        for name, w in shared.items():
            if w.grad is not None:
                expected[name] += of(w.grad) / 5
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-6, msg=name)
    assert found["idle.weight"].count_nonzero() == 0
    assert all(values.any() for name, values in found.items() if "idle" not in name)


def test_a_network_without_layers_to_factor() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor, task: int) -> Tensor:
            return x.mean((2, 3)) * self.scale

    images = Images(torch.full((2, 3, 4, 4), 255, dtype=torch.uint8), torch.tensor([0, 1]), 0)
    found = mean_over_images(Scaled(), images, PIXELS, energy, torch.abs)
    torch.testing.assert_close(found["scale"], torch.full((3,), 2.0))
