"""Batches mixed from pairs of images of one task, and their two labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """The other half of a mixed batch: its labels, and the share of the first half."""

    labels: Tensor
    share: float


def mixup(
    x: Tensor, y: Tensor, tasks: Tensor, alpha: float, random: np.random.Generator
) -> tuple[Tensor, Mixture]:
    """Images averaged with others of the same task; Zhang et al. 2018, arXiv 1710.09412.

    The share of the first image is drawn from Beta(alpha, alpha), one for the batch.
    """
    share = float(random.beta(alpha, alpha))
    partner = _partners(tasks, random)
    return torch.lerp(x[partner], x, share), Mixture(y[partner], share)


def cutmix(
    x: Tensor, y: Tensor, tasks: Tensor, random: np.random.Generator
) -> tuple[Tensor, Mixture]:
    """Images with a rectangle of others of the same task; Yun et al. 2019, arXiv 1905.04899.

    x: (n, C, H, W). The rectangle's area is uniform before it is clipped at the border, its shape
    that of the image, one for the batch; the share of the first image is what is left of it.
    """
    height, width = x.shape[-2:]
    side = float(np.sqrt(random.random()))
    top, bottom = _span(height, side, random)
    left, right = _span(width, side, random)
    partner = _partners(tasks, random)
    mixed = x.clone()
    mixed[..., top:bottom, left:right] = x[partner, ..., top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, Mixture(y[partner], share)


def _span(length: int, share: float, random: np.random.Generator) -> tuple[int, int]:
    middle, half = int(random.integers(length)), round(share * length) / 2
    return max(round(middle - half), 0), min(round(middle + half), length)


def _partners(tasks: Tensor, random: np.random.Generator) -> Tensor:
    """For each sample the number of one of the same task, each once."""
    first, second = (_by_task(random.permutation(len(tasks)), tasks) for _ in range(2))
    partner = torch.empty_like(first)
    partner[first] = second
    return partner


def _by_task(order: np.ndarray, tasks: Tensor) -> Tensor:
    shuffled = torch.from_numpy(order).to(tasks.device)
    return shuffled[tasks[shuffled].argsort(stable=True)]
