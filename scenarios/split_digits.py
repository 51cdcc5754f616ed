"""scikit-learn's 1797 handwritten digits (8x8, grey) in 5 tasks of 2; needs no download."""

from __future__ import annotations

import torch

from firefly_cl.scenarios import SCENARIOS
from firefly_cl.scenarios.cut import Dataset, cut, groups_of
from firefly_cl.scenarios.options import ScenarioOptions
from firefly_cl.scenarios.scenario import Scenario

TEST_FRACTION = 0.2
TEST_SEED = 1797


@SCENARIOS.register("split-digits")
def split_digits(options: ScenarioOptions) -> Scenario:
    """Build split-digits: digits in ascending order, a fifth of each for the test.

    The test images are the same for every seed.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The pixels are counts of 0 to 16.
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).long()
    generator = torch.Generator().manual_seed(TEST_SEED)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        found = (labels == digit).nonzero()[:, 0]
        order = torch.randperm(len(found), generator=generator)
        is_test[found[order[: round(TEST_FRACTION * len(found))]]] = True
    dataset = Dataset(
        images[~is_test],
        labels[~is_test],
        images[is_test],
        labels[is_test],
        tuple(str(digit) for digit in range(10)),
    )
    groups = groups_of(range(10), options.n_tasks or 5)
    return cut("split-digits", dataset, groups, options, flip=False)
