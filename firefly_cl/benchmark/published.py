"""Accuracies that papers report, shown beside those measured here and marked as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
_FIREFLY = "Wu et al. 2020, arXiv 2102.08574"
_MODEL_ZOO = "Ramesh and Chaudhari 2022, arXiv 2106.03027"
_API = "Liang and Li 2023, CVPR, Adaptive Plasticity Improvement for Continual Learning"
_WSN = "Kang et al. 2022, ICML, Forget-free Continual Learning with Winning Subnetworks"
_VAN_DE_VEN = "van de Ven et al. 2022, Nature Machine Intelligence 4, table 3"

PUBLISHED: Mapping[tuple[str, int], tuple[Published, ...]] = {
    ("split-cifar100-superclass", 20): (
        Published("Model Zoo, with replay", 84.27, _MODEL_ZOO),
        Published("CPG, VGG16", 80.9, _CPG),
        Published("individual VGG16", 78.8, _CPG),
        Published("fine-tuned VGG16", 78.6, _CPG),
        Published("PackNet, VGG16", 67.5, _CPG),
        Published("WSN, LeNet", 61.8, _WSN),
        Published("SupSup, LeNet", 61.7, _WSN),
        Published("API, LeNet", 60.2, _API),
        Published("GPM, LeNet", 57.7, _WSN),
    ),
    ("split-cifar100", 20): (
        Published("Model Zoo, with replay", 94.99, _MODEL_ZOO),
        Published("firefly, thin VGG16", 91.03, _FIREFLY),
        Published("CPG, VGG16", 90.75, _FIREFLY),
        Published("individual VGG16", 88.85, _FIREFLY),
        Published("PNN, AlexNet", 82.3, _API),
        Published("API, AlexNet", 81.4, _API),
        Published("TRGP, AlexNet", 80.5, _API),
        Published("GPM, AlexNet", 78.9, _API),
        Published("EWC, AlexNet", 75.3, _API),
    ),
    ("split-cifar100", 10): (
        Published("multitask AlexNet", 79.8, _WSN),
        Published("replay, pretrained convolutions", 76.43, _VAN_DE_VEN),
        Published("WSN, AlexNet", 76.4, _WSN),
        Published("EWC, pretrained convolutions", 76.34, _VAN_DE_VEN),
        Published("GPM, AlexNet", 73.2, _WSN),
        Published("PackNet, AlexNet", 72.4, _WSN),
        Published("EWC, AlexNet", 68.8, _WSN),
    ),
}
"""By scenario and tasks that its classes are cut into; means where a paper gives several runs."""

_CUT: Mapping[str, int] = {"split-cifar100-superclass": 20, "split-cifar100": 20}
"""Into how many tasks a scenario is cut unless told otherwise."""


def published_for(configuration: Mapping[str, Any]) -> Sequence[Published]:
    """What papers report on test images of a run's protocol: the same cut, all of its tasks."""
    scenario = str(configuration["scenario"])
    cut = configuration.get("split_into") or _CUT.get(scenario, 0)
    if "evaluate_on" in configuration or configuration.get("tasks") not in (None, cut):
        return ()
    return PUBLISHED.get((scenario, cut), ())
