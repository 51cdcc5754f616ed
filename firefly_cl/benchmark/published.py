"""Accuracies that papers report, shown beside those measured here and marked as published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One method's average task-incremental accuracy in percent, and where it is told."""

    method: str
    accuracy: float
    source: str

    @property
    def label(self) -> str:
        """What stands in the place of a strategy's name."""
        return f"{self.method} (published)"


_CPG = "Hung et al. 2019, arXiv 1910.06562"

PUBLISHED: Mapping[tuple[str, int], tuple[Published, ...]] = {
    ("split-cifar100-superclass", 20): (
        Published("Model Zoo, with replay", 84.27, "Ramesh and Chaudhari 2022, arXiv 2106.03027"),
        Published("CPG, VGG16", 80.9, _CPG),
        Published("individual VGG16", 78.8, _CPG),
        Published("fine-tuned VGG16", 78.6, _CPG),
        Published("PackNet, VGG16", 67.5, _CPG),
    ),
}
"""By scenario and number of tasks; means where a paper gives several runs."""
