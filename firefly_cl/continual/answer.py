"""Answering questions about a trained network: the same bits on every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from firefly_cl.continual.learner import EVALUATION_BATCH
from firefly_cl.continual.precision import answering_layout
from firefly_cl.continual.views import Laterals, Views
from firefly_cl.errors import DataError
from firefly_cl.network import FireflyNet
from firefly_cl.network.laterals import lateral_factor
from firefly_cl.network.modes import evaluation
from firefly_cl.scenarios import normalise


@torch.no_grad()
def answer(
    module: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    image_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    views: Views | None = None,
    laterals: Laterals | None = None,
) -> Tensor:
    """Logits (n, classes) of `forward`, float32 on the CPU, for images (n, C, H, W) uint8.

    In evaluation mode of `module`, in batches of at most a fixed size, in float32: the mean over
    `views`, that of the image alone unless told. laterals: as for `Views.answer`.
    Raises DataError for images of another shape.
    """
    if tuple(images.shape[1:]) != tuple(image_shape):
        raise DataError(
            f"images are {tuple(images.shape[1:])}; the model expects {tuple(image_shape)}"
        )
    device, views = next(module.parameters()).device, views or Views()
    layout, parts = answering_layout(module, device), []
    with evaluation(module) if module.training else nullcontext():
        for chunk in torch.split(images, EVALUATION_BATCH):
            # Written anew: strides may steer which kernel runs, hence the last bits.
            plain = torch.empty(chunk.shape, dtype=chunk.dtype).copy_(chunk)
            inputs = normalise(plain, mean, std).to(device)
            with torch.autocast(device.type, enabled=False):
                logits = views.answer(
                    forward, inputs, mean, std, EVALUATION_BATCH, layout, laterals
                )
            parts.append(logits.cpu())
    return torch.cat(parts)


def answer_task(net: FireflyNet, task: int, images: Tensor, **inputs: Any) -> Tensor:
    """Logits (n, classes of the task); images and inputs as for `answer`."""
    laterals = None if net.lateral(task) is None else partial(lateral_factor, net)
    return answer(net, lambda x: net(x, task), images, laterals=laterals, **inputs)
