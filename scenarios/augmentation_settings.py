"""The settings of the augmentation, apart from it: reports and records need no torch."""

from __future__ import annotations

from dataclasses import dataclass

from firefly_cl.errors import ConfigurationError


@dataclass(frozen=True)
class AugmentationSettings:
    """What is done to training images; raises ConfigurationError for values that cannot work."""

    crop_padding: int = 4
    """Zero pixels added on each side before a random crop of the original size; 0 is off."""
    flip: bool = True
    """Whether each image is mirrored left to right with probability one half."""
    jitter: float = 0.0
    """Brightness, contrast and saturation are each scaled by 1 - jitter .. 1 + jitter; 0 is off."""
    rotation: float = 0.0
    """Each image is turned by -rotation .. rotation degrees; 0 is off."""
    zoom: float = 0.0
    """Height and width are each scaled by 1 - zoom .. 1 + zoom; 0 is off."""
    warped: float = 0.5
    """Probability that an image is turned and zoomed, which blurs it; the others stay as sharp as
    the images of a test."""
    cutout: int = 0
    """Side in pixels of a square hole at a random centre (DeVries and Taylor 2017); 0 is off."""

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or self.cutout < 0:
            raise ConfigurationError(
                f"crop_padding is {self.crop_padding} and cutout is {self.cutout}: "
                "give pixels, 0 or more"
            )
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(
                f"jitter is {self.jitter}, expected 0 to 1: give for example 0.3"
            )
        if not 0 <= self.warped <= 1:
            raise ConfigurationError(f"warped is {self.warped}: give a probability from 0 to 1")
        if not 0 <= self.rotation <= 180 or not 0 <= self.zoom < 1:
            raise ConfigurationError(
                f"rotation is {self.rotation} and zoom is {self.zoom}: give degrees from 0 to 180 "
                "and a share from 0 to below 1"
            )
