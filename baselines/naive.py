"""Fine-tuning: one multi-head network trained on each task in turn, with no defence.

The lower bound of forgetting (Avalanche's Naive). Old heads receive no gradient; the
trunk and its batch norm follow the newest task.
"""

from __future__ import annotations

from firefly_cl.baselines.multihead import MultiHeadLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import NoOptions, Setup, read_options


@STRATEGIES.register("naive")
def naive(setup: Setup) -> MultiHeadLearner:
    """Fine-tuning; takes no options."""
    read_options(setup.options, NoOptions)
    return MultiHeadLearner(setup)
