"""Micro-conditioning: pictures that lost resolution or were cropped, and the numbers that say so.

Source: Podell et al. 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", section 2.2.
There small and oddly shaped photographs are what the data has; here they are made: all scenes are whole and sharp.
"""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from training.emoji.config import FramingConfig
from training.emoji.scenes import RESOLUTION

WHOLE = (RESOLUTION, RESOLUTION, 0, 0, RESOLUTION, RESOLUTION)
"""The conditions of an untouched picture, which are what the pipeline's call gives where it is told nothing."""


def frame_(images: Tensor, config: FramingConfig, seed: int) -> Tensor:
    """Blurs or crops some of the pictures `(N, 3, 64, 64)` uint8 in place; the result are their conditions `(N, 6)`.

    These are SDXL's: original height and width, top and left of the crop, target height and width, in pixels.
    """
    rng = Random(seed)
    conditions = []
    for image in images:
        chance = rng.random()
        if chance < config.blurred:
            conditions.append(_blur_(image, rng.randint(*config.original)))
        elif chance < config.blurred + config.cropped:
            conditions.append(_crop_(image, rng.randint(*config.enlarged), rng))
        else:
            conditions.append(WHOLE)
    return torch.tensor(conditions)


def _blur_(image: Tensor, side: int) -> tuple[int, ...]:
    """As if the original had been `side` pixels wide."""
    image.copy_(_resize(_resize(image, side), RESOLUTION))
    return (side, side, *WHOLE[2:])


def _crop_(image: Tensor, side: int, rng: Random) -> tuple[int, ...]:
    """As if it had been cut from a picture `side` pixels wide."""
    top, left = (rng.randint(0, side - RESOLUTION) for _ in range(2))
    image.copy_(_resize(image, side)[:, top : top + RESOLUTION, left : left + RESOLUTION])
    return (RESOLUTION, RESOLUTION, top, left, RESOLUTION, RESOLUTION)


def _resize(image: Tensor, side: int) -> Tensor:
    resized = interpolate(image[None].float(), size=(side, side), mode="bilinear", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)
