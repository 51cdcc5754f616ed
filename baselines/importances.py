"""Gradients of one image at a time: what a weight is to each answer, not to their mean.

The empirical Fisher information and the sensitivity of MAS are means over images of a square or a
size. Gradients of batches, whose slopes cancel, give another number for every order and size of the
batches (van de Ven 2025, "On the Computation of the Fisher Information in Continual Learning",
arXiv 2502.11756).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from firefly_cl.baselines.springs import shared_weights
from firefly_cl.continual.loading import Pixels
from firefly_cl.network.modes import evaluation
from firefly_cl.scenarios import Images, normalise

CHUNK = 32
"""Images whose gradients are held in memory at a time."""

Product = nn.Linear | nn.Conv2d
"""Layers with a weight whose gradient is a product: of what they read and of what comes back."""

Objective = Callable[[Tensor, Tensor], Tensor]
"""What is differentiated: of logits (1, classes) and a label (1,), 0-dimensional."""

Elementwise = Callable[..., Tensor]
"""A function like torch.square or torch.abs, with `out`: of(a b) = of(a) of(b)."""


def mean_over_images(
    model: nn.Module,
    images: Images,
    pixels: Pixels,
    objective: Objective,
    of: Elementwise,
) -> dict[str, Tensor]:
    """The mean over images of `of` each one's gradient of the objective, for each shared weight.

    In evaluation, on plain images. `model` is called with images and the number of their task.
    """
    weights = {name: value.detach() for name, value in shared_weights(model)}
    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    device = next(iter(weights.values())).device
    products = _weights_of_products(model)
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
                x, labels = normalise(raw, pixels.mean, pixels.std).to(device), labels.to(device)
                factors = _factors(products, partial(model, x, task), labels, objective)
                for name, (read, slopes) in factors.items():
                    total[name] += _sum_over_images(products[name], read, slopes, of)
                others = {name: value for name, value in weights.items() if name not in factors}
                for name, gradient in of_each(others, x, labels).items():
                    total[name] += of(gradient).sum(0)
    return {name: value / len(images) for name, value in total.items()}


def _weights_of_products(model: nn.Module) -> dict[str, Product]:
    """The trunk's layers of this kind, by name of their weight; not those that share it."""
    layers = {
        f"{name}.weight": part
        for name, part in model.named_modules()
        if ".heads." not in f".{name}." and (type(part) is nn.Linear or _plain_convolution(part))
    }
    holders = Counter(id(part.weight) for part in layers.values())
    return {name: part for name, part in layers.items() if holders[id(part.weight)] == 1}


def _plain_convolution(part: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        type(part) is nn.Conv2d
        and part.groups == 1
        and part.padding_mode == "zeros"
        and not isinstance(part.padding, str)
    )


def _sum_over_images(layer: Product, read: Tensor, slopes: Tensor, of: Elementwise) -> Tensor:
    """The sum over images of `of` each one's gradient of the layer's weight."""
    if isinstance(layer, nn.Linear):  # an outer product, as large for each image as the weight
        return of(slopes).T @ of(read)
    padding = cast(tuple[int, ...], layer.padding)  # no name: a plain convolution
    windows = F.unfold(read, layer.kernel_size, layer.dilation, padding, layer.stride)
    total = torch.zeros_like(layer.weight).flatten(1)
    gradient = torch.empty_like(total)
    for slope, window in zip(slopes.flatten(2), windows, strict=True):  # one fits in a cache
        total += of(torch.mm(slope, window.T, out=gradient), out=gradient)
    return total.view_as(layer.weight)


def _factors(
    layers: Mapping[str, Product],
    answers: Callable[[], Tensor],
    labels: Tensor,
    objective: Objective,
) -> dict[str, tuple[Tensor, Tensor]]:
    """What each layer reads, and the objective's slopes in what it answers; batches both.

    Not of layers that are called more than once, nor of linear ones on more than a row an image.
    """
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def moved(name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        move = torch.zeros_like(output, requires_grad=True)
        calls.setdefault(name, []).append((inputs[0].detach(), move))
        return output + move

    with ExitStack() as hooks, torch.enable_grad():
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(moved, name)))
        each = vmap(objective)(answers()[:, None], labels[:, None])
        simple = {
            name: factors[0]
            for name, factors in calls.items()
            if len(factors) == 1 and factors[0][1].dim() == layers[name].weight.dim()
        }
        if not simple:
            return {}
        slopes = torch.autograd.grad(each.sum(), [move for _, move in simple.values()])
    return {name: (simple[name][0], slope) for name, slope in zip(simple, slopes, strict=True)}
