"""What a user can ask of any scenario."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from firefly_cl.errors import ConfigurationError


@dataclass(frozen=True)
class ScenarioOptions:
    """How a scenario is found and cut; raises ConfigurationError for values that cannot work."""

    data_dir: Path | None = None
    """Folder or file of the data; without it, the environment variable FIREFLY_DATA."""
    download: bool = False
    """Whether missing data may be fetched from the internet."""
    seed: int = 0
    """Seed of the class order and of the validation split."""
    n_tasks: int | None = None
    """How many tasks the scenario is cut into; None is the scenario's own number."""
    first_tasks: int | None = None
    """Only the first so many tasks are streamed; None streams all."""
    validation: float = 0.1
    """Fraction of each class's training images that is held out for validation."""

    image_size: int | None = None
    """Side in pixels that image-folder resizes to; None is 32. Others refuse what is not theirs."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ConfigurationError(
                f"validation is {self.validation}, expected a fraction from 0 up to, but not "
                "including, 1: give for example 0.1"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigurationError(f"seed is {self.seed}: give a whole number from 0 to 2^63 - 1")
        for name in ("n_tasks", "first_tasks", "image_size"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigurationError(f"{name} is {number}: give 1 or more, or leave it out")

    def data_root(self) -> Path | None:
        """Where the data are: data_dir, else what FIREFLY_DATA names, else None."""
        root = self.data_dir or os.environ.get("FIREFLY_DATA")
        return Path(root).expanduser() if root else None
