"""Firefly descent with new units alone: no splits, no unlocked copies."""

from __future__ import annotations

from dataclasses import dataclass

from firefly_cl.growth import CRITERIA
from firefly_cl.growth.firefly import Firefly


@CRITERIA.register("firefly-new")
@dataclass(frozen=True)
class FireflyNew(Firefly):
    """Firefly (Wu et al. 2020, arXiv 2102.08574) whose only candidates are new units."""

    copies: int = 0
    splits: bool = False
