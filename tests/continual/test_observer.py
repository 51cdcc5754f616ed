"""An observer is shown every event with what it was decided by, and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from growing_streams import PLAN, RECIPE, growing, stream_of
from torch import Tensor

from firefly_cl.gates.pruning import GatePruning
from firefly_cl.gates.selection import GateSelection

torch.set_num_threads(1)


class Seen:
    """Keeps all that it is shown."""

    def __init__(self) -> None:
        self.all: list[tuple[int, Any, Mapping[str, Sequence[float]], Sequence[Tensor]]] = []

    def edited(
        self,
        number: int,
        event: Mapping[str, object],
        scores: Mapping[str, Sequence[float]],
        gates: Sequence[Tensor],
    ) -> None:
        self.all.append((number, event, scores, gates))


def learn(observer: Seen | None) -> Any:
    plan = replace(
        PLAN,
        grow_at=(0.5,),
        select_at=(0.25,),
        selection=GateSelection(epochs=2, learning_rate=1.0),
        prune_at=(0.75,),
        gates=GatePruning(lam=0.05, epochs=3, learning_rate=1.0),
    )
    recipe = replace(RECIPE, epochs=4)
    strategy = growing(plan=plan, recipe=recipe)
    strategy.firefly.observer = observer
    for experience in stream_of([((0, 1), 16), ((2, 3), 16)]).train_stream:
        strategy.train(experience)
    return strategy


@pytest.fixture(scope="module")
def observed() -> tuple[Any, Seen]:
    seen = Seen()
    return learn(seen), seen


def test_every_event_is_shown_once_in_order(observed: tuple[Any, Seen]) -> None:
    strategy, seen = observed
    assert [event for _, event, _, _ in seen.all] == strategy.firefly.events
    assert [number for number, *_ in seen.all] == list(range(len(seen.all)))
    kinds = ["predicted_decrease", "removed", "dropped"]
    found = {kind for kind in kinds for _, event, _, _ in seen.all if kind in event}
    assert found == set(kinds)


def test_growth_shows_what_all_candidates_promised(observed: tuple[Any, Seen]) -> None:
    grown = [each for each in observed[1].all if "predicted_decrease" in each[1]]
    assert grown
    for _, event, scores, gates in grown:
        assert gates == () and len(scores["new"]) > 0
        for kind, added in event["kinds"].items():
            assert sum(gain > 0 for gain in scores[kind]) >= added
        # candidates that did not win are among them
        assert sum(map(len, scores.values())) > sum(event["kinds"].values())


def test_searches_show_their_gates_after_each_epoch(observed: tuple[Any, Seen]) -> None:
    for _, event, scores, gates in observed[1].all:
        if "predicted_decrease" in event:
            continue
        gone = event.get("removed", event.get("dropped"))
        stay = event.get("kept", event.get("read"))
        assert not scores and len(gates) == (3 if "removed" in event else 2)
        units = sum(gone.values()) + sum(stay.values())
        assert all(values.shape == (units,) for values in gates)
        # a unit stays where its gate ends above 0.9, and one in each space in any case
        surely = int((gates[-1] > 0.9).sum())
        assert surely <= sum(stay.values()) <= surely + len(stay)


def test_nothing_depends_on_being_observed(observed: tuple[Any, Seen]) -> None:
    alone = learn(None)
    assert alone.firefly.events == observed[0].firefly.events
    own, other = alone.net.state_dict(), observed[0].net.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
