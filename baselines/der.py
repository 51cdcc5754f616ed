"""Dark experience replay, DER++: remembered images must be answered with their old logits.

Paper: Buzzega et al. 2020, "Dark Experience for General Continual Learning", arXiv 2004.07211,
algorithm 2. As in Avalanche's DER, one batch from the memory serves both terms and runs through the
network with the new images, and logits are those of the plain image where its task ends (the
authors draw two batches, each by itself, and keep logits of augmented images while the task is
learnt). Logits are of the image's own head, in float32, and with a single head of all classes of
that time. Images of the task may be mixed; remembered ones are not, since a mixed image has no
stored logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firefly_cl.baselines.exemplars import Exemplars, JoinedRehearsalPlugin, check_mem_size
from firefly_cl.baselines.multihead import HeadOptions, MultiHead, pixels_of
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import EVALUATION_BATCH, Setup, read_options
from firefly_cl.errors import ConfigurationError
from firefly_cl.network.modes import evaluation
from firefly_cl.scenarios import Images, images_of, normalise
from firefly_cl.search_space import Range, searched


@dataclass(frozen=True)
class DerOptions(HeadOptions):
    """Images kept in total, weight of the logits' squared error, weight of the labels.

    alpha = 0.1 and beta = 0.5 are Avalanche's, within the range of the paper's table of settings.
    `head`: see HeadOptions.
    """

    mem_size: int = 2000
    alpha: float = searched(0.1, Range(0.03, 3.0, log=True))
    beta: float = searched(0.5, Range(0.03, 3.0, log=True))

    def __post_init__(self) -> None:
        """Check all."""
        super().__post_init__()
        check_mem_size(self.mem_size)
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 <= value < float("inf"):
                raise ConfigurationError(f"{name} is {value}; it must be 0 or more")


class DarkPlugin(JoinedRehearsalPlugin):
    """Adds alpha * squared error of logits + beta * loss of labels, both of one recalled batch."""

    def __init__(self, setup: Setup, exemplars: Exemplars, alpha: float, beta: float) -> None:
        super().__init__(setup, exemplars)
        self.alpha = alpha
        self.beta = beta

    def before_backward(self, strategy: Any, **kwargs: object) -> None:
        """Add both terms to the loss."""
        recalled = self.recall(strategy)
        if recalled is None:
            return
        logits, labels, chosen = recalled
        assert self.exemplars.logits is not None
        # Other tasks may have more classes, and a single head has grown since.
        known = min(logits.shape[1], self.exemplars.logits.shape[1])
        stored, answers = self.exemplars.logits[chosen, :known].to(logits.device), logits[:, :known]
        present = ~(stored.isneginf() | answers.isneginf())
        error = (answers[present] - stored[present]).square().mean()
        strategy.loss += self.alpha * error
        strategy.loss += self.beta * strategy._criterion.unmixed(logits, labels)

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Remember images of the task just learnt, and their logits."""
        self._batches = None
        self.part()
        images = images_of(strategy.experience.dataset)
        self.exemplars.add(images, self.logits_of(strategy, images))

    @torch.no_grad()
    def logits_of(self, strategy: Any, images: Images) -> Tensor:
        """Logits (n, classes) of plain images by their tasks' heads, on the CPU.

        With a single head those of the other tasks follow.
        """
        model: MultiHead = strategy.model
        answer = model.among_all if model.single_head else model
        pixels, parts = pixels_of(self.setup), []
        with evaluation(model):
            for chunk, tasks in zip(
                torch.split(images.images, EVALUATION_BATCH),
                torch.split(images.task_of_each(), EVALUATION_BATCH),
                strict=True,
            ):
                x = normalise(chunk, pixels.mean, pixels.std).to(strategy.device)
                parts.append(answer(x, tasks.to(strategy.device)).float().cpu())
        return torch.cat(parts)


@STRATEGIES.register("der", options=DerOptions)
def der(setup: Setup) -> ResumableLearner:
    """DER++; options mem_size, alpha, beta and head."""
    options = read_options(setup.options, DerOptions)
    exemplars = Exemplars(options.mem_size)
    plugin = DarkPlugin(setup, exemplars, options.alpha, options.beta)
    return ResumableLearner(setup, [plugin], exemplars, head=options.head)
