"""Looking at a module in evaluation mode, and leaving every part of it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each submodule has its own mode back.

    Submodules that came inside have the mode of the whole.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        module.train(modes[0][1])
        for part, training in modes:
            part.training = training
