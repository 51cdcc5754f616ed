"""Fine-tuning: one multi-head network trained on each task in turn, with no defence.

The lower bound of forgetting (Avalanche's Naive). Old heads receive no gradient; the
trunk follows the newest task.
"""

from __future__ import annotations

from dataclasses import dataclass

from firefly_cl.baselines.multihead import HeadOptions
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.search_space import Choice, searched


@dataclass(frozen=True)
class NaiveOptions(HeadOptions):
    """Whose batch-norm statistics a task is evaluated with: "shared" or the "task"'s own.

    "shared" was the better on validation images of split-digits and of three superclasses of
    CIFAR-100, in short trials under an older recipe that left no record. `head`: see HeadOptions.
    """

    norm: str = searched("shared", Choice(("shared", "task")))


@STRATEGIES.register("naive", options=NaiveOptions)
def naive(setup: Setup) -> ResumableLearner:
    """Fine-tuning; options norm and head."""
    options = read_options(setup.options, NaiveOptions)
    return ResumableLearner(setup, norm=options.norm, head=options.head)
