"""iCaRL: herding against every choice, and answers against distances by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from firefly_cl.baselines.prototypes import herd
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup
from firefly_cl.scenarios import Scenario, normalise


def test_herding_takes_the_best_next_row() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(9, 3, generator=generator)
    chosen = herd(features, 5)
    assert len(set(chosen)) == 5
    for k in range(5):
        reached = {
            row: float((features[[*chosen[:k], row]].mean(0) - features.mean(0)).norm())
            for row in range(9)
            if row not in chosen[:k]
        }
        assert min(reached, key=reached.__getitem__) == chosen[k]
    assert sorted(herd(features, 20)) == list(range(9))


def test_answers_are_distances_to_means_of_exemplars(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    options = {"mem_size": "30"}
    setup = setup_for(digits, backbone="mlp-bn", options=options, recipe={"epochs": 2})
    learner: Any = STRATEGIES.get("icarl")(setup)
    for experience in digits.benchmark().train_stream:
        learner.train(experience)
    held = learner.memory.images
    pairs = Counter(zip(held.tasks.tolist(), held.labels.tolist(), strict=True))
    assert sorted(pairs.values()) == [7, 7, 8, 8] and len(pairs) == 4

    def features(images: Tensor) -> Tensor:
        x = normalise(images, digits.mean, digits.std)
        return functional.normalize(learner.net.eval().trunk(x), dim=1).detach()

    for task in (0, 1):
        images = digits.tasks[task].test.images
        expected = torch.empty(len(images), 2)
        for label in (0, 1):
            rows = (held.tasks == task) & (held.labels == label)
            mean = functional.normalize(features(held.images[rows]).mean(0), dim=0)
            expected[:, label] = -(features(images) - mean).square().sum(1)
            # The exemplars that were herded first have stayed.
            places = -learner.memory.state()["draws"][rows]
            assert places.sort().values.tolist() == list(range(int(rows.sum())))
        torch.testing.assert_close(learner.logits(task, images), expected, rtol=1e-4, atol=1e-5)
