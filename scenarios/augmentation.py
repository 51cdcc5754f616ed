"""Random crops, flips, colours, turns, zooms and holes, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from firefly_cl.scenarios.augmentation_settings import AugmentationSettings
from firefly_cl.scenarios.images import normalise


class Augmentation(AugmentationSettings):
    """What is done to training images, with the settings it is done by."""

    def __call__(
        self,
        images: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        generator: torch.Generator,
    ) -> Tensor:
        """Augmented and normalised float32 copies of images, (n, C, H, W), uint8 or in [0, 1].

        The same generator state gives the same result. Holes are filled with the mean.
        """
        images = self.crop_and_flip(images, generator)
        if self.jitter:
            scale = 255.0 if images.dtype == torch.uint8 else 1.0
            images = self.colour(images.float() / scale, generator)
        images = normalise(images, mean, std)
        if self.rotation or self.zoom:
            images = self.warp(images, generator)
        return self.cut_out(images, generator) if self.cutout else images

    def crop_and_flip(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one crop offset (y, then x) and one flip for each image and gather the pixels."""
        n, channels, height, width = images.shape
        if not self.crop_padding and not self.flip:
            return images
        device, margin = images.device, self.crop_padding
        rows = torch.arange(height, device=device).expand(n, height)
        columns = torch.arange(width, device=device).expand(n, width)
        if margin:
            images = pad(images, (margin, margin, margin, margin))
            y, x = torch.randint(
                2 * margin + 1, (2, n, 1), generator=generator, device=generator.device
            ).to(device)
        else:
            y = x = torch.zeros((n, 1), dtype=torch.int64, device=device)
        if self.flip:
            mirrored = torch.rand((n, 1), generator=generator, device=generator.device) < 0.5
            columns = torch.where(mirrored.to(device), width - 1 - columns, columns)
        pixels = (rows + y)[:, :, None] * images.shape[-1] + (columns + x)[:, None, :]
        # gather over flat planes is three to four times faster than indexing by four tensors.
        return (
            images.reshape(n, channels, -1)
            .gather(2, pixels.view(n, 1, -1).expand(n, channels, -1))
            .view(n, channels, height, width)
        )

    def colour(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Scale brightness, contrast and saturation of each image, in that order.

        images: (n, C, H, W) float32 in [0, 1], as are the results. Images of one channel have no
        saturation.
        """
        strength = 1 + self.jitter * (
            2 * torch.rand((3, len(images)), generator=generator, device=generator.device) - 1
        )
        brightness, contrast, saturation = strength.to(images.device).view(3, -1, 1, 1, 1)
        images = (images * brightness).clamp_(0, 1)
        grey_level = _grey(images).mean(dim=(2, 3), keepdim=True)
        images = torch.lerp(grey_level.expand_as(images), images, contrast).clamp_(0, 1)
        if images.shape[1] == 3:
            images = torch.lerp(_grey(images).expand_as(images), images, saturation).clamp_(0, 1)
        return images

    def warp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Turn and zoom images drawn with probability `warped`, about the centre, bilinearly.

        What comes in from outside is zero.
        """
        n = len(images)
        draws = torch.rand((4, n), generator=generator, device=generator.device)
        chosen = (draws[3] < self.warped).to(images.device)
        angle, tall, wide = (2 * draws[:3] - 1).to(images.device)
        angle = torch.deg2rad(self.rotation * angle)
        tall, wide = 1 / (1 + self.zoom * tall), 1 / (1 + self.zoom * wide)
        matrix = images.new_zeros(n, 2, 3)
        matrix[:, 0, 0], matrix[:, 0, 1] = wide * angle.cos(), -wide * angle.sin()
        matrix[:, 1, 0], matrix[:, 1, 1] = tall * angle.sin(), tall * angle.cos()
        grid = affine_grid(matrix, list(images.shape), align_corners=False)
        warped = grid_sample(images, grid, align_corners=False)
        return torch.where(chosen.view(n, 1, 1, 1), warped, images)

    def cut_out(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Zero a square of each image, centred on a random pixel and clipped at the border."""
        n, _, height, width = images.shape
        draw = torch.rand((2, n, 1), generator=generator, device=generator.device)
        size = torch.tensor([height, width]).view(2, 1, 1)
        top, left = ((draw.cpu() * size).long() - self.cutout // 2).to(images.device)
        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        in_rows = (rows >= top) & (rows < top + self.cutout)
        in_columns = (columns >= left) & (columns < left + self.cutout)
        return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    # Luma weights of ITU-R BT.601.
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)
