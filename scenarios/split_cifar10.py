"""CIFAR-10 in 5 tasks of 2 classes, in the dataset's own order."""

from __future__ import annotations

from firefly_cl.scenarios import SCENARIOS
from firefly_cl.scenarios.cifar import CIFAR10, read_cifar
from firefly_cl.scenarios.cut import cut, groups_of
from firefly_cl.scenarios.options import ScenarioOptions
from firefly_cl.scenarios.scenario import Scenario


@SCENARIOS.register("split-cifar10")
def split_cifar10(options: ScenarioOptions) -> Scenario:
    """Build split-cifar10: the seed decides the validation split only."""
    groups = groups_of(range(10), options.n_tasks or 5, equal=True)
    return cut("split-cifar10", read_cifar(CIFAR10, options).dataset, groups, options, flip=True)
