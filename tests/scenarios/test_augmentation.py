"""Batched augmentation against the same operations done image by image."""

import math

import pytest
import torch
from torch.nn.functional import pad

from firefly_cl.errors import ConfigurationError
from firefly_cl.scenarios import Augmentation, normalise

OFF = {"crop_padding": 0, "flip": False}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int = 50, channels: int = 3, height: int = 10, width: int = 12) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, height, width), generator=seeded(9)).byte()


def test_crop_equals_a_slice_of_the_padded_image() -> None:
    images = pixels()
    out = Augmentation(crop_padding=3, flip=False).crop_and_flip(images, seeded())
    ys, xs = torch.randint(7, (2, 50, 1), generator=seeded())
    assert len(set(zip(ys.flatten().tolist(), xs.flatten().tolist(), strict=True))) > 10
    for image, result, y, x in zip(images, out, ys, xs, strict=True):
        assert torch.equal(result, pad(image, (3, 3, 3, 3))[:, y : y + 10, x : x + 12])


def test_flip_equals_reversed_columns_where_drawn() -> None:
    images = pixels()
    out = Augmentation(crop_padding=0, flip=True).crop_and_flip(images, seeded(4))
    mirrored = torch.rand((50, 1), generator=seeded(4)).flatten() < 0.5
    assert 10 < int(mirrored.sum()) < 40
    assert torch.equal(out[mirrored], images[mirrored].flip(-1))
    assert torch.equal(out[~mirrored], images[~mirrored])


def test_crop_and_flip_together_on_floats() -> None:
    images = torch.rand((50, 1, 8, 8), generator=seeded(2))
    out = Augmentation(crop_padding=2, flip=True).crop_and_flip(images, seeded(3))
    generator = seeded(3)
    ys, xs = torch.randint(5, (2, 50, 1), generator=generator)
    mirrored = torch.rand((50, 1), generator=generator) < 0.5
    for image, result, y, x, flip in zip(images, out, ys, xs, mirrored, strict=True):
        cropped = pad(image, (2, 2, 2, 2))[:, y : y + 8, x : x + 8]
        assert torch.equal(result, cropped.flip(-1) if flip else cropped)


def test_all_off_is_normalisation_alone() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    out = Augmentation(**OFF)(pixels(), mean, std, seeded())
    expected = (pixels().double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(
        std
    ).view(3, 1, 1)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(out, normalise(pixels(), mean, std))


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout_zeroes_one_square_clipped_at_the_border(size: int) -> None:
    ones = torch.ones(400, 3, 10, 12)
    out = Augmentation(**OFF, cutout=size).cut_out(ones, seeded())
    centres = (
        torch.rand((2, 400, 1), generator=seeded()) * torch.tensor([10, 12]).view(2, 1, 1)
    ).long()
    whole = 0
    for hole, y, x in zip(out == 0, centres[0].tolist(), centres[1].tolist(), strict=True):
        top, left = y[0] - size // 2, x[0] - size // 2
        expected = torch.zeros(10, 12, dtype=torch.bool)
        expected[max(0, top) : top + size, max(0, left) : left + size] = True
        assert torch.equal(hole, expected.expand(3, 10, 12))
        assert 1 <= int(expected.sum()) <= size * size
        whole += int(expected.sum()) == size * size
    assert whole > 100
    assert torch.equal(ones, torch.ones_like(ones))


def test_cutout_fills_with_the_mean_after_normalisation() -> None:
    white = torch.full((5, 1, 8, 8), 255, dtype=torch.uint8)
    out = Augmentation(**OFF, cutout=3)(white, (0.25,), (0.5,), seeded())
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 1.5]))


def test_jitter_scales_brightness_contrast_and_saturation() -> None:
    images = torch.rand((20, 3, 6, 6), generator=seeded(1)) * 0.5
    out = Augmentation(**OFF, jitter=0.4).colour(images, seeded(5))
    strength = 1 + 0.4 * (2 * torch.rand((3, 20), generator=seeded(5)) - 1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for image, result, (b, c, s) in zip(images, out, strength.T, strict=True):
        image = (image * b).clamp(0, 1)
        level = (image * weights).sum(0).mean()
        image = (level + c * (image - level)).clamp(0, 1)
        grey = (image * weights).sum(0)
        image = (grey + s * (image - grey)).clamp(0, 1)
        torch.testing.assert_close(result, image)


def test_jitter_of_one_channel_stays_in_range() -> None:
    out = Augmentation(**OFF, jitter=1.0).colour(torch.rand(30, 1, 5, 5), seeded())
    assert out.shape == (30, 1, 5, 5)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


def test_the_generator_decides_everything() -> None:
    augmentation = Augmentation(jitter=0.3, cutout=4)
    one, again, other = (
        augmentation(pixels(), (0.5,) * 3, (0.25,) * 3, seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "options", [{"crop_padding": -1}, {"cutout": -2}, {"jitter": 1.5}, {"jitter": math.nan}]
)
def test_impossible_values_are_refused(options: dict) -> None:
    with pytest.raises(ConfigurationError, match="give"):
        Augmentation(**options)


def test_rotation_by_ninety_degrees_turns_the_pixels() -> None:
    images = torch.rand((3, 2, 6, 6), generator=seeded(1))
    augmentation = Augmentation(**OFF, rotation=90, warped=1)
    draws = torch.tensor([1.0, 0.5, 0.5, 0.0])[:, None].expand(4, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: draws)
        out = augmentation.warp(images, seeded())
    torch.testing.assert_close(out, torch.rot90(images, 1, (2, 3)))


def test_zoom_moves_what_lies_off_the_centre_outwards_or_inwards() -> None:
    images = torch.zeros(60, 1, 16, 16)
    images[:, :, 6:10, 6:10] = 1.0
    out = Augmentation(**OFF, zoom=0.5, warped=1).warp(images, seeded())
    area = out.sum(dim=(1, 2, 3))
    tall, wide = 1 + 0.5 * (2 * torch.rand((4, 60), generator=seeded()) - 1)[1:3]
    torch.testing.assert_close(area, 16 * tall * wide, rtol=0.15, atol=0.5)


def test_only_the_drawn_share_of_the_images_is_warped() -> None:
    images = torch.rand((400, 1, 8, 8), generator=seeded(1))
    out = Augmentation(**OFF, rotation=20, warped=0.25).warp(images, seeded())
    same = (out == images).all(dim=(1, 2, 3))
    assert 0.65 < same.float().mean() < 0.85
    assert not torch.isclose(out[~same], images[~same]).all(dim=(1, 2, 3)).any()


def test_an_impossible_share_of_warped_images_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="give a probability"):
        Augmentation(warped=1.5)


@pytest.mark.parametrize("setting", [{"rotation": -1.0}, {"rotation": 200.0}, {"zoom": 1.0}])
def test_impossible_turns_and_zooms_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="give degrees from 0 to 180"):
        Augmentation(**setting)
