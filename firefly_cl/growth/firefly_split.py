"""Firefly descent with splits alone: own units in two, no new or unlocked ones."""

from __future__ import annotations

from dataclasses import dataclass

from firefly_cl.growth import CRITERIA
from firefly_cl.growth.firefly import Firefly


@CRITERIA.register("firefly-split")
@dataclass(frozen=True)
class FireflySplit(Firefly):
    """Firefly (Wu et al. 2020, arXiv 2102.08574) whose only candidates are splits."""

    news: int = 0
    copies: int = 0
