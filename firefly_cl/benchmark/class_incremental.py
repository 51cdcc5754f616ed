"""Class-incremental evaluation: which class of all tasks so far, where the task is not told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from firefly_cl.continual.learner import Competing
from firefly_cl.errors import DivergenceError

if TYPE_CHECKING:
    from firefly_cl.continual.learner import Learner
    from firefly_cl.scenarios import Scenario

LOGIT = "logit"
"""The class of the greatest logit: for heads that read the same features."""

PROBABILITY = "probability"
"""The class of the greatest softmax probability among those of its task, over all tasks: for tasks
that have functions of their own. Hendrycks and Gimpel 2017, arXiv 1610.02136, take it for the
confidence of a network; with two classes a task, it chooses the task as the least entropy does
(von Oswald et al. 2020, arXiv 1906.00695)."""


def evaluate(
    learner: Learner, scenario: Scenario, seen: int
) -> tuple[str | None, list[float | None]]:
    """The rule that `learner` answers by, and its accuracy on the test images of each task.

    seen: how many tasks were streamed, whose images are asked about; None stands for tasks that
    cannot be answered yet or have no images. An answer is right if task and class are. Raises
    DivergenceError if a logit is not finite.
    """
    row: list[float | None] = [None] * len(scenario.tasks)
    tests = [task.test for task in scenario.tasks[: min(seen, learner.tasks_trained)]]
    if not tests:
        return None, row
    images = torch.cat([test.images for test in tests])
    rule, scores = _scores(learner, images)
    best = torch.full((len(images),), -torch.inf, dtype=torch.float64)
    tasks, classes = torch.zeros(2, len(images), dtype=torch.int64)
    for task, of_task in enumerate(scores):
        score, chosen = of_task.max(dim=1)
        better = score > best
        best[better], tasks[better], classes[better] = score[better], task, chosen[better]
    start = 0
    for task, test in enumerate(tests):
        part = slice(start, start + len(test.labels))
        start = part.stop
        if len(test.labels):
            right = (tasks[part] == task) & (classes[part] == test.labels)
            row[task] = int(right.sum()) / len(test.labels)
    return rule, row


def _scores(learner: Learner, images: Tensor) -> tuple[str, Iterator[Tensor]]:
    """The rule, and for each task the scores (n, classes) of its classes by that rule."""
    logits = learner.all_logits(images) if isinstance(learner, Competing) else None
    if logits is not None:
        return LOGIT, (_checked(each, task) for task, each in enumerate(logits))
    # One task over all images after another: what some learners assemble for a task is kept.
    return PROBABILITY, (
        log_odds(_checked(learner.logits(task, images), task))
        for task in range(learner.tasks_trained)
    )


def log_odds(logits: Tensor) -> Tensor:
    """Of each class, the logarithm of p / (1 - p), p its softmax probability, (n, classes).

    It ranks as p does, and still does where p has been rounded to 1.
    """
    others = logits[:, None].repeat(1, logits.shape[1], 1)
    others.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return logits - others.logsumexp(dim=2)


def _checked(logits: Tensor, task: int) -> Tensor:
    if not torch.isfinite(logits).all():
        raise DivergenceError(f"the logits of task {task} are not finite: lower --learning-rate")
    return logits.double()
