"""Gradients of one image at a time: what a weight is to each answer, not to their mean.

The empirical Fisher information and the sensitivity of MAS are means over images of a square or a
size. Gradients of batches, whose slopes cancel, give another number for every order and size of the
batches (van de Ven 2025, "On the Computation of the Fisher Information in Continual Learning",
arXiv 2502.11756).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from firefly_cl.baselines.springs import shared_weights
from firefly_cl.continual.loading import Pixels
from firefly_cl.network.modes import evaluation
from firefly_cl.scenarios import Images, normalise

CHUNK = 32
"""Images whose gradients are held in memory at a time."""

Objective = Callable[[Tensor, Tensor], Tensor]
"""What is differentiated: of logits (1, classes) and a label (1,), 0-dimensional."""


def mean_over_images(
    model: nn.Module,
    images: Images,
    pixels: Pixels,
    objective: Objective,
    of: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The mean over images of `of` each one's gradient of the objective, for each shared weight.

    In evaluation, on plain images. `model` is called with images and the number of their task.
    """
    weights = {name: value.detach() for name, value in shared_weights(model)}
    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    device = next(iter(weights.values())).device
    tasks = images.task_of_each()
    with evaluation(model), torch.no_grad():
        for task in torch.unique(tasks).tolist():

            def of_one(
                values: dict[str, Tensor], x: Tensor, label: Tensor, task: int = task
            ) -> Tensor:
                return objective(functional_call(model, values, (x[None], task)), label[None])

            of_each = vmap(grad(of_one), in_dims=(None, 0, 0))
            chosen = tasks == task
            parts = (torch.split(part[chosen], CHUNK) for part in (images.images, images.labels))
            for raw, labels in zip(*parts, strict=True):
                x = normalise(raw, pixels.mean, pixels.std).to(device)
                gradients = of_each(weights, x, labels.to(device))
                for name, gradient in gradients.items():
                    total[name] += of(gradient).sum(0)
    return {name: value / len(images) for name, value in total.items()}
