"""Splits and new units as they are drawn: made part of the network without a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from firefly_cl.growth.budget import Candidate
from firefly_cl.growth.candidates import propose
from firefly_cl.growth.commit import commit
from firefly_cl.growth.criterion import Growth, Loss, finite
from firefly_cl.growth.execution import CandidateExecution
from firefly_cl.network import FireflyNet


def grow_drawn(
    net: FireflyNet,
    chosen: Sequence[Candidate],
    batch: Any,
    loss: Loss,
    reach: float,
    generator: torch.Generator,
) -> Growth:
    """Commit chosen splits and new units with drawn directions.

    The halves of a split move by +-`reach` times the norm of own units' rows there, along a drawn
    direction. A new unit has drawn rows of that norm, and outgoing weights of `reach` times the
    norm of theirs (`propose`); its norm statistics are those of `batch`. New units are numbered
    anew. Raises DivergenceError, the network as it was.
    """
    kept, counts = [], dict.fromkeys((c.space for c in chosen), 0)
    for candidate in chosen:
        if candidate.kind == "new":
            candidate = replace(candidate, unit=counts[candidate.space])
            counts[candidate.space] += 1
        kept.append(candidate)
    splits = any(c.kind == "split" for c in kept)
    news = max(counts.values(), default=0)
    candidates = propose(net, list(counts), news, 0, generator, splits)

    def model(x: Tensor) -> Tensor:
        return CandidateExecution(net, candidates).run(x)

    with torch.no_grad():
        finite(loss(model, batch))
    return Growth(commit(net, candidates, kept, reach), kept)
