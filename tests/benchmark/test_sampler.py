"""What is proposed: a function of the seed and of the trials before, that learns from both."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import pytest

from firefly_cl.benchmark.sampler import propose
from firefly_cl.benchmark.trials import Trial
from firefly_cl.errors import ConfigurationError
from firefly_cl.search_space import Choice, Domain, Range, Value

SPACE: dict[str, Domain] = {
    "rate": Range(1e-3, 1.0, log=True),
    "steps": Range(1, 8),
    "kind": Choice(("soft", "hard")),
}
DEFAULTS: dict[str, Value] = {"rate": 0.5, "steps": 2, "kind": "hard"}

Score = Callable[[dict[str, Value]], float | None]


def trial(number: int, settings: dict[str, Value], score: float | None) -> Trial:
    return Trial(number, settings, score, [score], None, 0.0, {}, {}, [], {})


def search(score: Score, count: int, seed: int = 0) -> list[Trial]:
    trials: list[Trial] = []
    for number in range(count):
        settings = propose(SPACE, trials, seed) if number else DEFAULTS
        trials.append(trial(number, settings, score(settings)))
    return trials


def distance(settings: dict[str, Value]) -> float:
    """Decades from the best rate, 0.01."""
    return abs(math.log10(float(settings["rate"])) + 2)


def near(settings: dict[str, Value]) -> float:
    return 1 - distance(settings) / 3 - 0.2 * (settings["kind"] == "hard")


def test_the_same_search_again_and_another_seed() -> None:
    first = [t.settings for t in search(near, 14)]
    assert first == [t.settings for t in search(near, 14)]
    assert len({t["rate"] for t in first}) == 14
    assert first[1:] != [t.settings for t in search(near, 14, seed=1)][1:]


def test_a_proposal_is_drawn_from_the_trials_before_it_alone() -> None:
    trials = search(near, 14)
    assert propose(SPACE, trials[:12], 0) == trials[12].settings
    assert propose(SPACE, trials[:3], 0) == trials[3].settings


@pytest.mark.parametrize("seed", range(5))
def test_the_first_trials_are_spread_over_the_space(seed: int) -> None:
    first = [made.settings for made in search(near, 9, seed)[1:]]
    shares = [(math.log10(float(settings["rate"])) + 3) / 3 for settings in first]
    for count in (4, 8):
        for place, share in enumerate(sorted(shares[:count])):
            assert share == pytest.approx((place + 0.5) / count, abs=0.5 / count + 1e-3)  # rounded
    assert {settings["steps"] for settings in first} == set(range(1, 9))
    assert sum(settings["kind"] == "soft" for settings in first) == 4


def test_searches_of_several_spaces_try_the_same_learning_rates() -> None:
    alone = {"rate": SPACE["rate"]}
    trials = search(near, 9)
    for number in range(1, 9):
        assert propose(alone, trials[:number], 0)["rate"] == trials[number].settings["rate"]


def test_whole_numbers_are_spread_over_decades() -> None:
    space: dict[str, Domain] = {"steps": Range(1, 999, log=True)}
    trials = [trial(0, {"steps": 1}, 0.5)]
    for number in range(1, 10):
        trials.append(trial(number, propose(space, trials, 0), 0.5))
    digits = [len(str(made.settings["steps"])) for made in trials[1:]]
    assert sorted(set(digits)) == [1, 2, 3]
    assert all(2 <= digits.count(each) <= 4 for each in (1, 2, 3))


def test_proposals_lie_in_the_space_and_read_well() -> None:
    for made in search(near, 20)[1:]:
        assert all(domain.holds(made.settings[name]) for name, domain in SPACE.items())
        assert type(made.settings["steps"]) is int
        assert len(f"{made.settings['rate']:.9g}".lstrip("0.")) <= 3


def test_it_learns_where_the_score_is_high() -> None:
    late = [t.settings for seed in range(4) for t in search(near, 30, seed)[15:]]
    evenly = (1**2 / 2 + 2**2 / 2) / 3  # mean distance of draws from all three decades
    assert sum(map(distance, late)) / len(late) < 0.7 * evenly
    assert sum(settings["kind"] == "soft" for settings in late) > 0.6 * len(late)


def test_it_learns_from_failures() -> None:
    def diverges_above(settings: dict[str, Value]) -> float | None:
        return None if float(settings["rate"]) > 0.03 else 0.5

    failed = [t.score is None for t in search(diverges_above, 30)]
    assert sum(failed[15:]) / 15 < sum(failed[:10]) / 10


def test_defaults_outside_of_the_space_are_not_told_to_the_sampler() -> None:
    outside = trial(0, {**DEFAULTS, "rate": 5.0}, 0.9)
    inside = search(near, 20)[1:]
    settings = propose(SPACE, [outside, *inside], 0)
    assert 1e-3 <= float(settings["rate"]) <= 1.0
    assert settings != propose(SPACE, inside, 0)  # the number of the trial counts all the same


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigurationError, match=r"pip install optuna$"):
        propose(SPACE, [], 0)
