"""CIFAR-100 in n tasks of equal size (20 unless told), its classes in a random order by seed."""

from __future__ import annotations

from firefly_cl.scenarios import SCENARIOS
from firefly_cl.scenarios.cifar import CIFAR100, read_cifar
from firefly_cl.scenarios.cut import class_order, cut, groups_of
from firefly_cl.scenarios.options import ScenarioOptions
from firefly_cl.scenarios.scenario import Scenario


@SCENARIOS.register("split-cifar100")
def split_cifar100(options: ScenarioOptions) -> Scenario:
    """Build random-n: the class order is that of Avalanche's SplitCIFAR100 of the same seed."""
    groups = groups_of(class_order(100, options.seed), options.n_tasks or 20, equal=True)
    return cut("split-cifar100", read_cifar(CIFAR100, options).dataset, groups, options, flip=True)
