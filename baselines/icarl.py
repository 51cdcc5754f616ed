"""iCaRL: herded exemplars, distillation, and the nearest mean of exemplars as the answer.

Paper: Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning", arXiv
1611.07725. Made for one head over all classes; here a task is answered among its own means. The
network trains with the run's loss on new images and on exemplars, and with LwF's distillation of
old heads on new images (the paper: binary cross-entropy for both, and distillation on exemplars
too). New images may be mixed, as LwF says; exemplars are not. Herding and means see plain images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from firefly_cl.baselines.exemplars import Exemplars, JoinedRehearsalPlugin, check_mem_size
from firefly_cl.baselines.lwf import DistillationPlugin, LwfOptions
from firefly_cl.baselines.multihead import pixels_of
from firefly_cl.baselines.prototypes import PrototypeNet, herd
from firefly_cl.baselines.resumable import ResumableLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import EVALUATION_BATCH, Setup, read_options
from firefly_cl.network.modes import evaluation
from firefly_cl.scenarios import Images, images_of, normalise


@dataclass(frozen=True)
class IcarlOptions(LwfOptions):
    """LwF's, and the images kept in total: the paper's 2000 for CIFAR-100."""

    mem_size: int = 2000

    def __post_init__(self) -> None:
        """Check all."""
        super().__post_init__()
        check_mem_size(self.mem_size)


class HerdingPlugin(JoinedRehearsalPlugin):
    """Trains on exemplars too; where a task ends, herds new ones and takes the means of all."""

    def before_backward(self, strategy: Any, **kwargs: object) -> None:
        """Add the loss of a batch of exemplars."""
        recalled = self.recall(strategy)
        if recalled is not None:
            logits, labels, _ = recalled
            strategy.loss += strategy._criterion.unmixed(logits, labels)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Let the task's exemplars into the memory and compute every class's mean anew."""
        self._batches = None
        self.part()
        net: PrototypeNet = strategy.model.net
        with evaluation(net):
            self._herd(net, images_of(strategy.experience.dataset))
            held = self.exemplars.images
            assert held is not None
            features, tasks = self._features(net, held), held.task_of_each()
            for task in net.heads:
                means = net.means.get_buffer(task)
                for label in range(len(means)):
                    rows = (tasks == int(task)) & (held.labels == label)
                    if rows.any():
                        means[label] = functional.normalize(features[rows].mean(0), dim=0)

    def _herd(self, net: PrototypeNet, images: Images) -> None:
        features, tasks = self._features(net, images), images.task_of_each()
        seen = sum(len(means) for means in net.means.buffers())
        chosen, order = [], []
        for task in torch.unique(tasks).tolist():
            for label in torch.unique(images.labels[tasks == task]).tolist():
                rows = ((tasks == task) & (images.labels == label)).nonzero()[:, 0]
                herded = herd(features[rows], -(-self.exemplars.mem_size // seen))
                chosen.append(rows[herded])
                order.append(-torch.arange(len(herded), dtype=torch.float32))
        rows = torch.cat(chosen)
        herded_images = Images(images.images[rows], images.labels[rows], -1, tasks[rows])
        self.exemplars.add(herded_images, draws=torch.cat(order))

    def _features(self, net: PrototypeNet, images: Images) -> Tensor:
        """Features (n, F) of plain images, of length 1, on the CPU."""
        pixels = pixels_of(self.setup)
        chunks = torch.split(images.images, EVALUATION_BATCH)
        inputs = (normalise(chunk, pixels.mean, pixels.std) for chunk in chunks)
        return torch.cat([net.unit_features(x.to(self.setup.device)).cpu() for x in inputs])


class IcarlLearner(ResumableLearner):
    """A learner around a network that answers by means of exemplars."""

    network = PrototypeNet
    model_kind = "prototypes"


@STRATEGIES.register("icarl", options=IcarlOptions)
def icarl(setup: Setup) -> IcarlLearner:
    """iCaRL; options mem_size, alpha, temperature and head."""
    options = read_options(setup.options, IcarlOptions)
    exemplars = Exemplars(options.mem_size, "class")
    # Distillation comes first: it reads the features that the new images have just had.
    plugins = [DistillationPlugin(options), HerdingPlugin(setup, exemplars)]
    return IcarlLearner(setup, plugins, exemplars, head=options.head)
