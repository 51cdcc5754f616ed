"""CIFAR-100 in 20 tasks, the five classes of one superclass each, superclasses alphabetical."""

from __future__ import annotations

from firefly_cl.errors import ConfigurationError, DataError
from firefly_cl.scenarios import SCENARIOS
from firefly_cl.scenarios.cifar import CIFAR100, read_cifar
from firefly_cl.scenarios.cut import cut
from firefly_cl.scenarios.options import ScenarioOptions
from firefly_cl.scenarios.scenario import Scenario


@SCENARIOS.register("split-cifar100-superclass")
def split_cifar100_superclass(options: ScenarioOptions) -> Scenario:
    """Build superclass-20: the seed decides the validation split only."""
    if options.n_tasks not in (None, 20):
        raise ConfigurationError(
            f"split-cifar100-superclass has 20 tasks, not {options.n_tasks}: leave n_tasks "
            "(--split-into) out, and choose how many are streamed with first_tasks (--tasks)"
        )
    cifar = read_cifar(CIFAR100, options)
    if cifar.superclass_of_class is None or cifar.superclasses is None:
        raise DataError(
            "the CIFAR-100 file has no superclasses: add the keys superclass_names and "
            "superclass_of_class to it, or use torchvision's files"
        )
    order = sorted(range(len(cifar.superclasses)), key=cifar.superclasses.__getitem__)
    groups = [
        [c for c, coarse in enumerate(cifar.superclass_of_class) if coarse == superclass]
        for superclass in order
    ]
    names = [cifar.superclasses[superclass] for superclass in order]
    return cut("split-cifar100-superclass", cifar.dataset, groups, options, flip=True, names=names)
