"""Online elastic weight consolidation: one decaying spring per weight, centred on the last task.

Paper: Schwarz et al. 2018, "Progress & Compress", arXiv 1805.06370, section 2.2 (without its
knowledge base). Importances as in `ewc`; after a task the older ones count `decay_factor` of what
they did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from firefly_cl.baselines.ewc import ConsolidationPlugin, EwcOptions
from firefly_cl.baselines.multihead import pixels_of
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.baselines.springs import Springs
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.continual.loading import Pixels
from firefly_cl.errors import ConfigurationError
from firefly_cl.search_space import Range, searched


@dataclass(frozen=True)
class OnlineEwcOptions(EwcOptions):
    """As EWC's, and what is left of older importances after each task.

    0.9 is a decay as the paper asks for (below 1); it has not been searched for.
    """

    decay_factor: float = searched(0.9, Range(0.5, 1.0))

    def __post_init__(self) -> None:
        """Check both."""
        super().__post_init__()
        if not 0 <= self.decay_factor <= 1:
            raise ConfigurationError(f"decay_factor is {self.decay_factor}; it must be in [0, 1]")


class OnlinePlugin(ConsolidationPlugin):
    """Adds lambda * sum_i F*_i (w_i - w_i')^2 with F* = decay F* + F and w' of the last task."""

    def __init__(self, springs: Springs, pixels: Pixels, decay_factor: float) -> None:
        super().__init__(springs, pixels)
        self.decay_factor = decay_factor

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Measure the importances on the task just learnt and move the springs' centres here."""
        self.springs.replace(self.importances_of(strategy), strategy.model, self.decay_factor)


@STRATEGIES.register("ewc-online", options=OnlineEwcOptions)
def ewc_online(setup: Setup) -> ResumableLearner:
    """Online EWC; options ewc_lambda, decay_factor and norm."""
    options = read_options(setup.options, OnlineEwcOptions)
    springs = Springs(options.ewc_lambda, setup.recipe.learning_rate, setup.device)
    plugin = OnlinePlugin(springs, pixels_of(setup), options.decay_factor)
    return ResumableLearner(setup, [plugin], springs, norm=options.norm)
