"""Winning subnetworks: each task learns a mask over shared weights, and freezes those it uses.

Paper: Kang et al. 2022, "Forget-free Continual Learning with Winning Subnetworks", ICML. Every
weight has a score. A task uses the weights of each layer whose scores are the largest, a share c
of them; weights and scores are trained together, the scores by gradients that pass straight
through the mask. Weights that an older task uses are put back after every step, so older tasks
answer to the same bits for ever. Scores go on from task to task, as in the authors' code;
they count among the bytes kept, and masks with one bit for each weight and task: the paper's
Huffman coding is left out.

Unlike in the paper, every task has biases and batch norms of its own, which begin from those of
the task before; and weights that no task uses begin every task as they were drawn, since weight
decay, which the paper does without, would wear them away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

from firefly_cl.baselines.masked import MaskedNet
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.continual.training import experience_seed
from firefly_cl.errors import ConfigurationError
from firefly_cl.search_space import Range, searched


@dataclass(frozen=True)
class WsnOptions:
    """What share of every layer's weights a task uses, and how fast scores learn.

    capacity: the paper's c. score_rate: a factor on the learning rate of the recipe. A score's
    gradient is the weight's times the weight, far smaller, so that with SGD masks would hardly
    change; the paper trains both by Adam. Not tuned.
    """

    capacity: float = 0.5
    score_rate: float = searched(10.0, Range(1.0, 100.0, log=True))

    def __post_init__(self) -> None:
        """Check both."""
        if not 0 < self.capacity <= 1:
            raise ConfigurationError(f"capacity is {self.capacity}; it must be in (0, 1]")
        if not self.score_rate > 0:
            raise ConfigurationError(f"score_rate is {self.score_rate}; it must be above 0")


class Scores:
    """One number for each packed weight: those with the largest are in the mask of the task."""

    def __init__(self, capacity: float, device: torch.device | None = None) -> None:
        self.capacity = capacity
        self.device = device
        self.values: dict[str, nn.Parameter] = {}

    def draw(self, net: MaskedNet, generator: torch.Generator) -> None:
        """New scores for all packed weights, uniform in +-1/sqrt(fan-in)."""
        for name, weights in net.packed():
            bound = weights[0].numel() ** -0.5
            drawn = torch.empty(weights.shape).uniform_(-bound, bound, generator=generator)
            self.values[name] = nn.Parameter(drawn.to(weights.device))

    def masks(self) -> dict[str, Tensor]:
        """1 for the weights of each layer with the largest scores, 0 for the others, by name.

        The gradient of a score is that of its mask.
        """
        masks = {}
        for name, scores in self.values.items():
            count = max(1, round(self.capacity * scores.numel()))
            largest = scores.detach().flatten().topk(count, sorted=False).indices
            mask = torch.zeros_like(scores).flatten().index_fill(0, largest, 1.0)
            masks[name] = mask.view_as(scores) + (scores - scores.detach())
        return masks

    def nbytes(self) -> int:
        """4 for each."""
        return sum(scores.nbytes for scores in self.values.values())

    def state(self) -> dict[str, Tensor]:
        """The scores by the names of the weights."""
        return {f"score {name}": scores.detach() for name, scores in self.values.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave; raises ValueError for another's."""
        if not state or not all(name.startswith("score ") for name in state):
            raise ValueError("no scores")
        self.values = {
            name.removeprefix("score "): nn.Parameter(scores.to(self.device))
            for name, scores in state.items()
        }


class SubnetworkPlugin(SupervisedPlugin):
    """Trains the masks of a MaskedNet, and the weights in them that no older task uses."""

    def __init__(self, scores: Scores, score_rate: float, seed: int) -> None:
        super().__init__()
        self.scores = scores
        self.score_rate = score_rate
        self.seed = seed
        self._group: dict[str, Any] = {}
        self._held: dict[str, tuple[Tensor, Tensor]] = {}

    def before_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Hold the weights of older tasks; give the scores, drawn once, to the optimizer."""
        net: MaskedNet = strategy.model.net
        if not self.scores.values:
            self.scores.draw(net, torch.Generator().manual_seed(experience_seed(self.seed, 0)))
        self._held = {
            name: (~net.taken(name), weights.detach().clone()) for name, weights in net.packed()
        }
        self._group = {
            "params": list(self.scores.values.values()),
            "rate_scale": self.score_rate,
            "weight_decay": 0.0,
        }
        strategy.optimizer.add_param_group(self._group)

    def before_forward(self, strategy: Any, **kwargs: object) -> None:
        """The masks are those of the scores of now."""
        strategy.model.net.chosen = self.scores.masks()

    def after_update(self, strategy: Any, **kwargs: object) -> None:
        """Put back what must not change, whatever the optimizer did."""
        self._put_back(strategy.model.net)

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Put back what the task does not use after all, and take the scores from the optimizer."""
        net: MaskedNet = strategy.model.net
        self._held = {
            name: (free & (net.chosen[name].detach() != 0), held)
            for name, (free, held) in self._held.items()
        }
        self._put_back(net)
        groups = strategy.optimizer.param_groups
        groups[:] = [group for group in groups if group is not self._group]
        self._group, self._held = {}, {}

    @torch.no_grad()
    def _put_back(self, net: MaskedNet) -> None:
        for name, weights in net.packed():
            free, held = self._held[name]
            weights.copy_(torch.where(free, weights, held))


class WsnLearner(ResumableLearner):
    """A learner around one MaskedNet and the scores of its weights."""

    network = MaskedNet
    model_kind = "masked"

    def __init__(self, setup: Setup, options: WsnOptions) -> None:
        scores = Scores(options.capacity, setup.device)
        plugin = SubnetworkPlugin(scores, options.score_rate, setup.seed)
        super().__init__(setup, [plugin], scores, norm="task")

    def floats(self) -> int:
        """Shared weights, heads, and each task's biases, norms and statistics."""
        return cast(MaskedNet, self.net).floats()

    def bytes(self) -> int:
        """4 for each float and each score, and the masks."""
        return super().bytes() + cast(MaskedNet, self.net).mask_bytes()


@STRATEGIES.register("wsn", options=WsnOptions)
def wsn(setup: Setup) -> WsnLearner:
    """Winning subnetworks; options capacity and score_rate."""
    return WsnLearner(setup, read_options(setup.options, WsnOptions))
