"""A world of synthetic sprites, and stages small enough to train in a test."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from training.emoji.config import SMALL, Schedule
from training.emoji.scenes import OBJECTS, Sprites
from training.emoji.sprites import scale_sprites

STEPS = 4
TINY_SCHEDULE = Schedule(steps=STEPS, batch_size=4, learning_rate=1e-3, warmup=2)
TINY_CLIP = replace(SMALL.clip, width=16, layers=1, heads=2, patch=16, scenes=8, schedule=TINY_SCHEDULE)
TINY_VAE = replace(SMALL.vae, widths=(4, 4, 4), norm_groups=2, scenes=8, schedule=TINY_SCHEDULE)
TINY_DENOISER = replace(SMALL.denoiser, widths=(8, 8, 8), norm_groups=4, scenes=8, schedule=TINY_SCHEDULE)
TINY_SECOND_TOWER = replace(SMALL.second_tower, width=12, layers=2, heads=2, scenes=8, schedule=TINY_SCHEDULE)
TINY_DENOISER_XL = replace(SMALL.denoiser_xl, denoiser=TINY_DENOISER, condition_width=4)


@pytest.fixture(scope="session")
def sprites() -> Sprites:
    """A disc in a colour of its own for every object, on a transparent ground."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    inside = (x**2 + y**2 < 0.9) * 255
    rng = np.random.default_rng(0)
    images = {}
    for name in OBJECTS:
        pixels = np.empty((64, 64, 4), np.uint8)
        pixels[..., :3] = rng.integers(0, 256, 3)
        pixels[..., 3] = inside
        images[name] = Image.fromarray(pixels)
    return scale_sprites(images)
