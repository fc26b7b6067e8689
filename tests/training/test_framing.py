"""Micro-conditions tell what was done to a picture."""

import torch

from training.emoji.config import FramingConfig
from training.emoji.framing import WHOLE, frame_


def ramp() -> torch.Tensor:
    """A picture whose value is its column, times two."""
    return (2 * torch.arange(64)).expand(3, 64, 64).to(torch.uint8).clone()


def test_untouched_pictures_have_the_conditions_of_the_pipelines_call() -> None:
    images = ramp()[None]
    conditions = frame_(images, FramingConfig(blurred=0.0, cropped=0.0), seed=0)
    assert torch.equal(images[0], ramp())
    assert conditions.tolist() == [list(WHOLE)] == [[64, 64, 0, 0, 64, 64]]


def test_a_crop_is_where_its_conditions_say() -> None:
    images = ramp().repeat(20, 1, 1, 1)
    conditions = frame_(images, FramingConfig(blurred=0.0, cropped=1.0, enlarged=(128, 128)), seed=0)
    for image, (height, width, _, left, *_) in zip(images, conditions.tolist(), strict=True):
        assert (height, width) == (64, 64)
        # Enlarged twice, column c of the crop is column (left + c) / 2 of the picture.
        expected = left + torch.arange(64.0)
        assert (image[0, 30, 2:-2] - expected[2:-2]).abs().max() <= 2
    assert len({tuple(row) for row in conditions.tolist()}) > 10


def test_a_blurred_picture_lost_what_its_conditions_say() -> None:
    stripes = (255 * (torch.arange(64) % 2)).expand(3, 64, 64).to(torch.uint8)
    images = stripes.repeat(4, 1, 1, 1)
    conditions = frame_(images, FramingConfig(blurred=1.0, cropped=0.0, original=(16, 20)), seed=0)
    for image, row in zip(images, conditions.tolist(), strict=True):
        assert 16 <= row[0] == row[1] <= 20
        assert row[2:] == [0, 0, 64, 64]
        assert image.float().std() < 0.2 * stripes.float().std()


def test_shares_and_seed() -> None:
    config = FramingConfig(blurred=0.25, cropped=0.25)
    first, second, other = (frame_(ramp().repeat(400, 1, 1, 1), config, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    blurred, cropped = first[:, 0] < 64, first[:, 2:4].sum(1) > 0
    assert 0.15 < blurred.float().mean() < 0.35
    assert 0.15 < cropped.float().mean() < 0.35
