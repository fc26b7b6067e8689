"""Scenes as tensors: a fixed pool of captions and pictures, drawn once from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from training.emoji.scenes import RESOLUTION, Sprites, caption, render, sample_scene, sample_style


@dataclass(frozen=True)
class ScenePool:
    """Captions and their pictures: `(N, 3, 64, 64)` uint8."""

    captions: tuple[str, ...]
    images: Tensor


def make_pool(sprites: Sprites, count: int, seed: int) -> ScenePool:
    """`count` scenes drawn with `seed`, each with a caption of a random style and slightly moved objects."""
    rng = Random(seed)
    captions = []
    images = np.empty((count, RESOLUTION, RESOLUTION, 3), np.uint8)
    for index in range(count):
        scene = sample_scene(rng)
        captions.append(caption(scene, sample_style(rng), rng))
        images[index] = render(scene, sprites, rng)
    return ScenePool(tuple(captions), torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())


def sample_captions(count: int, seed: int) -> list[str]:
    """`count` captions drawn with `seed`, without pictures."""
    rng = Random(seed)
    return [caption(sample_scene(rng), sample_style(rng), rng) for _ in range(count)]


def to_pixels(images: Tensor) -> Tensor:
    """uint8 pictures as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def token_ids(tokenizer: CLIPTokenizer, captions: tuple[str, ...]) -> Tensor:
    """Token ids `(N, L)` int64, padded and cut to the tokenizer's length L."""
    encoded = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids
