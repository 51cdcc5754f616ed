"""Experience replay with asymmetric cross-entropy: new images compete with their batch alone.

Paper: Caccia et al. 2022, "New Insights on Reducing Abrupt Representation Change in Online
Continual Learning", arXiv 2104.05025, eq. 3. The loss of new images counts only classes that are
in their batch, the one of remembered images all classes of their heads; the mean of both. With
several heads, new images cannot push older classes away in any case, so little is left of the
method's gain over replay: the paper has a single one. Images of the task that is learnt are in the
memory from its beginning, as in the paper's stream: that they compete with older classes is learnt
from remembered images alone. Where images are mixed, both labels of a mixed image are in its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from firefly_cl.baselines.exemplars import Exemplars, JoinedRehearsalPlugin, check_mem_size
from firefly_cl.baselines.multihead import HeadOptions
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.scenarios import images_of


@dataclass(frozen=True)
class ErAceOptions(HeadOptions):
    """Images kept in total, as in replay; `head`: see HeadOptions."""

    mem_size: int = 2000

    def __post_init__(self) -> None:
        """Check both."""
        super().__post_init__()
        check_mem_size(self.mem_size)


class AsymmetricPlugin(JoinedRehearsalPlugin):
    """Trains on the mean of two losses: of new images among their classes, of remembered ones."""

    def before_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Let images of the task into the memory, and begin to draw batches."""
        self.exemplars.add(images_of(strategy.experience.dataset))
        super().before_training_exp(strategy)

    def after_forward(self, strategy: Any, **kwargs: object) -> None:
        """Take the classes that are not in the batch out of the competition."""
        if self._batches is not None:
            absent = torch.ones_like(strategy.mb_output[0], dtype=torch.bool)
            absent[strategy.mb_y] = False
            strategy.mb_output = strategy.mb_output.masked_fill(absent, -torch.inf)

    def before_backward(self, strategy: Any, **kwargs: object) -> None:
        """Average with the loss of remembered images."""
        recalled = self.recall(strategy)
        if recalled is not None:
            logits, labels, _ = recalled
            strategy.loss = (strategy.loss + strategy._criterion.unmixed(logits, labels)) / 2

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Draw no more."""
        self._batches = None
        self.part()


@STRATEGIES.register("er-ace", options=ErAceOptions)
def er_ace(setup: Setup) -> ResumableLearner:
    """Experience replay with asymmetric cross-entropy; options mem_size and head."""
    options = read_options(setup.options, ErAceOptions)
    exemplars = Exemplars(options.mem_size, "class")
    return ResumableLearner(
        setup, [AsymmetricPlugin(setup, exemplars)], exemplars, head=options.head
    )
