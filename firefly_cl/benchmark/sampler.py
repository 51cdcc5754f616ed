"""What to try next: points spread over the space, then optuna's tree-structured Parzen estimator.

The first ones are a scrambled Sobol sequence, which leaves no part of a range untried as few random
points do (Bousquet et al. 2017, "Critical Hyper-Parameters: No Random, No Cry", arXiv 1706.03200).
The estimator is that of Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization". A
proposal is a function of the seed and the trials before it, so that a search that was stopped goes
on to the same trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from firefly_cl.errors import ConfigurationError
from firefly_cl.search_space import Choice, Domain, Value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from firefly_cl.benchmark.trials import Trial

SPREAD = 10
"""Trials after that of the defaults that are spread over the space, whatever was found."""

_DIMENSIONS = 32
"""Of the points: more than a space has, so that what comes first in it, such as the learning rate,
has the same values in the searches of all strategies."""

FAILED = 0.0
"""The score that a failed trial counts with: no accuracy is lower."""


def load_optuna() -> Any:
    """The module; raises ConfigurationError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigurationError(
            "tune needs optuna, which is not installed: pip install optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def propose(space: Mapping[str, Domain], trials: Sequence[Trial], seed: int) -> dict[str, Value]:
    """The settings to try after `trials`, which were numbers 0, 1, ...; numbers of three digits.

    Trial 0 is that of the defaults. A trial with a setting outside of `space`, as the defaults may
    have, teaches the sampler nothing. Raises ConfigurationError where optuna is not installed.
    """
    import numpy as np

    optuna = load_optuna()
    number = len(trials)
    if number <= SPREAD:
        return _spread(space, number, seed)
    draws = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=draws)
    )
    distributions = {name: _distribution(domain) for name, domain in space.items()}
    for trial in trials:
        if all(domain.holds(trial.settings[name]) for name, domain in space.items()):
            study.add_trial(
                optuna.trial.create_trial(
                    value=FAILED if trial.score is None else trial.score,
                    params=dict(trial.settings),
                    distributions=distributions,
                )
            )
    drawn = study.ask(distributions).params
    return {
        name: drawn[name] if isinstance(domain, Choice) else domain.nearest(drawn[name])
        for name, domain in space.items()
    }


def _spread(space: Mapping[str, Domain], number: int, seed: int) -> dict[str, Value]:
    """Point `number` of a sequence whose first few points cover the space, however few."""
    from torch.quasirandom import SobolEngine

    engine: Any = SobolEngine
    points = engine(max(len(space), _DIMENSIONS), scramble=True, seed=seed).draw(number)
    shares = dict(zip(space, points[-1].tolist(), strict=False))
    return {name: domain.at(shares[name]) for name, domain in space.items()}


def _distribution(domain: Domain) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)
