"""Being shown what growth, selection and pruning looked at, as it happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor


class Observer(Protocol):
    """Is shown every change of a network's structure; decides nothing."""

    def edited(
        self,
        number: int,
        event: Mapping[str, object],
        scores: Mapping[str, Sequence[float]],
        gates: Sequence[Tensor],
    ) -> None:
        """A growth step, a selection or a pruning was done.

        event: of `FireflyPlugin.events`, where it has this number. scores: of the candidates of
        growth, by kind, the decrease of the loss that each promised. gates: (units,), all that
        were searched, after each epoch of the search.
        """
