"""A recipe of seconds, and the accuracy it reaches."""

from __future__ import annotations

from firefly_cl.continual.learner import Learner
from firefly_cl.continual.recipe import Recipe
from firefly_cl.scenarios import Augmentation, Scenario

QUICK = Recipe(epochs=6, augmentation=Augmentation(crop_padding=1), precision="float32")


def accuracy(learner: Learner, scenario: Scenario, task: int) -> float:
    test = scenario.tasks[task].test
    right = learner.logits(task, test.images).argmax(1) == test.labels
    return right.float().mean().item()
