"""Experience replay: a memory of old images joins every batch.

Paper: Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning". Avalanche's
ReplayPlugin and its buffers; every step trains on a batch of the current task and one of the
same size from the memory, both augmented alike. Batch norm is shared and sees old and new images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import ExperienceBalancedBuffer, ReservoirSamplingBuffer

from firefly_cl.baselines.multihead import MultiHeadLearner
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, read_options
from firefly_cl.errors import ConfigurationError

BUFFERS = {"balanced": ExperienceBalancedBuffer, "reservoir": ReservoirSamplingBuffer}


@dataclass(frozen=True)
class ReplayOptions:
    """Images kept in total; "balanced" keeps equally many of each task, "reservoir" any."""

    mem_size: int = 2000
    buffer: str = "balanced"

    def __post_init__(self) -> None:
        """Check both."""
        if self.mem_size < 1:
            raise ConfigurationError(f"mem_size is {self.mem_size}: keep at least 1 image")
        if self.buffer not in BUFFERS:
            raise ConfigurationError(
                f"buffer is {self.buffer!r}; it must be one of {', '.join(BUFFERS)}"
            )


class MemoryPlugin(ReplayPlugin):
    """Avalanche's ReplayPlugin, filling its memory by the call that outlives Avalanche 0.6."""

    def after_training_exp(self, strategy: Any, **kwargs: object) -> None:
        """Let images of the experience into the memory."""
        self.storage_policy.post_adapt(strategy, strategy.experience)


@STRATEGIES.register("replay")
def replay(setup: Setup) -> MultiHeadLearner:
    """Experience replay; options mem_size and buffer."""
    options = read_options(setup.options, ReplayOptions)
    memory = BUFFERS[options.buffer](options.mem_size)
    plugin = MemoryPlugin(options.mem_size, storage_policy=memory)
    channels, height, width = setup.scenario.image_shape
    pixel_bytes = setup.scenario.tasks[0].train.images.element_size()
    image_bytes = channels * height * width * pixel_bytes
    label_bytes = 2 * 8  # a label and a task, int64 each

    def kept() -> int:
        return len(memory.buffer) * (image_bytes + label_bytes)

    return MultiHeadLearner(setup, [plugin], kept)
