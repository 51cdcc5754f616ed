"""Learning without forgetting: old heads must answer new images as they did before the task.

Paper: Li and Hoiem 2016, "Learning without Forgetting", arXiv 1606.09282. The loss of the new
task plus, for every older head, the divergence of its answers to the new images from those of the
network before the task, at a temperature; where there is a single head, that of its answers among
all older classes (LwF.MC of Rebuffi et al. 2017, arXiv 1611.07725, with a softmax). Nothing is kept
from task to task: that network is the one that the task begins with. Avalanche's plugin runs the
trunk once more for every task and lets new images change the old network's batch norm; here the
trunk runs once for all heads and the old network stays as it was. Where images are mixed, both
networks answer the mixed images, so old heads need no labels of theirs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.nn import functional

from firefly_cl.baselines.headed import HeadedNet
from firefly_cl.baselines.multihead import HeadOptions
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.continual.snapshot import Steady
from firefly_cl.errors import ConfigurationError
from firefly_cl.search_space import Range, searched


@dataclass(frozen=True)
class LwfOptions(HeadOptions):
    """Weight of the distillation, and its temperature: the paper's 1 and 2.

    `head`: see HeadOptions.
    """

    alpha: float = searched(1.0, Range(0.1, 10.0, log=True))
    temperature: float = searched(2.0, Range(1.0, 5.0))

    def __post_init__(self) -> None:
        """Check all."""
        super().__post_init__()
        if not 0 <= self.alpha < float("inf"):
            raise ConfigurationError(f"alpha is {self.alpha}; it must be 0 or more")
        if not 0 < self.temperature < float("inf"):
            raise ConfigurationError(f"temperature is {self.temperature}; it must be above 0")


class DistillationPlugin(Steady, SupervisedPlugin):
    """Adds alpha * the sum over older softmaxes of KL(old answers, new answers), in float32."""

    def __init__(self, options: LwfOptions) -> None:
        super().__init__()
        self.options = options
        self.teacher: HeadedNet | None = None
        self._old: list[str] = []
        self._features: Tensor | None = None
        self._hook: Any = None

    def before_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Keep the network as it is now, if it has older heads."""
        net: HeadedNet = strategy.model.net
        new = {str(task) for task in strategy.experience.task_labels}
        self._old = [task for task in net.heads if task not in new]
        if not self._old:
            return
        self.teacher = copy.deepcopy(net).requires_grad_(False).eval()
        self._hook = net.trunk.register_forward_hook(self._remember)

    def before_backward(self, strategy: Any, **kwargs: object) -> None:
        """Add the distillation to the loss."""
        if self.teacher is not None and self._features is not None:
            features = self._features[: len(strategy.mb_x)]  # others follow: remembered images
            strategy.loss += self.options.alpha * self.distillation(
                strategy.model.net.heads, features.float(), strategy.mb_x
            )

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Forget the older network."""
        if self._hook is not None:
            self._hook.remove()
        self.teacher = self._features = self._hook = None

    def distillation(self, heads: nn.ModuleDict, features: Tensor, x: Tensor) -> Tensor:
        """The sum over older softmaxes, the mean over images x, whose features are (B, F)."""
        assert self.teacher is not None
        with torch.no_grad():
            taught = self.teacher.trunk(x)
        total = features.new_zeros(())
        single = self.options.head == "single"  # then all old classes share one softmax
        for tasks in [self._old] if single else [[task] for task in self._old]:
            answers, targets = (
                (
                    torch.cat([own[task](f) for task in tasks], 1) / self.options.temperature
                ).log_softmax(1)
                for own, f in ((heads, features), (self.teacher.heads, taught))
            )
            total = total + functional.kl_div(
                answers, targets, reduction="batchmean", log_target=True
            )
        return total

    def _remember(self, trunk: nn.Module, inputs: object, features: Tensor) -> None:
        if trunk.training:
            self._features = features


@STRATEGIES.register("lwf", options=LwfOptions)
def lwf(setup: Setup) -> ResumableLearner:
    """Learning without forgetting; options alpha, temperature and head."""
    options = read_options(setup.options, LwfOptions)
    return ResumableLearner(setup, [DistillationPlugin(options)], head=options.head)
