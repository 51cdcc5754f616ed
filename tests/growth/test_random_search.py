"""Random search: the best of its tries wins, and their training stays out of the network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from growing_nets import assert_same_state, images, net_of, seeded, snapshot, two_tasks

from firefly_cl.errors import ConfigurationError, DivergenceError
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.random import Random
from firefly_cl.growth.random_search import RandomSearch

BATCHES = [(images(12, seed=s), torch.arange(12) % 3) for s in range(3, 8)]


def loss(model: Any, batch: Any) -> Any:
    return F.cross_entropy(model(batch[0]), batch[1])


def seeds_of(tries: int, seed: int = 0) -> list[int]:
    drawn: list[int] = torch.randint(2**62, (tries,), generator=seeded(seed)).tolist()
    return drawn


@pytest.mark.parametrize("most", [True, False])
def test_the_best_try_on_validation_wins(most: bool) -> None:
    """Validation that likes many units in the first layer, or few: one try is clearly best."""
    net = net_of("mlp")
    tries = [copy.deepcopy(net) for _ in range(8)]
    for trial, seed in zip(tries, seeds_of(8), strict=True):
        Random().grow(trial, BATCHES, loss, Budget(5), torch.Generator().manual_seed(seed))
    widths = [trial.spaces["hidden_0"].width(0) for trial in tries]
    assert len(set(widths)) > 2

    def judged(model: Any, batch: Any) -> Any:
        if batch == "validation":
            width = model.spaces["hidden_0"].width(0)
            return torch.tensor(float(-width if most else width))
        return loss(model, batch)

    RandomSearch(tries=8, steps=2).grow(
        net, BATCHES, judged, Budget(5), seeded(), validation=["validation"]
    )
    best = widths.index(max(widths) if most else min(widths))
    assert_same_state(net, snapshot(tries[best]))


def test_the_try_that_learns_best_wins_on_real_data() -> None:
    net = net_of("resnet9")
    search = RandomSearch(tries=4, steps=3, learning_rate=0.05)
    grown = copy.deepcopy(net)
    growth = search.grow(grown, BATCHES[:3], loss, Budget(5), seeded(), validation=BATCHES[3:])
    losses = []
    for seed in seeds_of(4):
        trial = copy.deepcopy(net)
        generator = torch.Generator().manual_seed(seed)
        Random().grow(trial, BATCHES[:3], loss, Budget(5), generator)
        begun = snapshot(trial)
        optimizer = torch.optim.SGD(trial.trainable(), lr=0.05, momentum=0.9)
        trial.train()
        for batch in BATCHES[:3]:
            optimizer.zero_grad()
            loss(trial, batch).backward()
            optimizer.step()
        trial.eval()
        losses.append((sum(loss(trial, b).item() for b in BATCHES[3:]), begun))
    assert len({value for value, _ in losses}) == 4
    assert_same_state(grown, min(losses, key=lambda pair: pair[0])[1])
    assert growth.gain == 0 and len(growth.kept) == 5


def test_without_validation_the_last_batches_are_held_out() -> None:
    trained, judged = set(), set()

    def watched(model: Any, batch: Any) -> Any:
        number = next(i for i, b in enumerate(BATCHES) if b is batch)
        (trained if getattr(model, "training", False) else judged).add(number)
        return loss(model, batch)

    RandomSearch(tries=2, steps=9).grow(two_tasks("mlp"), BATCHES, watched, Budget(3), seeded())
    assert trained == {0, 1, 2}
    assert judged == {0, 3, 4}  # statistics of new units on 0


def test_one_batch_cannot_both_train_and_judge() -> None:
    net = net_of("mlp")
    with pytest.raises(ConfigurationError, match="two batches"):
        RandomSearch().grow(net, BATCHES[:1], loss, Budget(3), seeded())
    RandomSearch(tries=1).grow(net, BATCHES[:1], loss, Budget(3), seeded(), validation=BATCHES[1:])
    assert net.units() == 11


def test_a_search_whose_tries_all_diverge_is_an_error() -> None:
    net = net_of("mlp")
    before = snapshot(net)
    with pytest.raises(DivergenceError, match="learning_rate"):
        RandomSearch(tries=2, learning_rate=1e200).grow(net, BATCHES, loss, Budget(3), seeded())
    assert_same_state(net, before)
