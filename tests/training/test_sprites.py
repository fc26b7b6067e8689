"""Sprites: scaled as the scenes need them, and asked for when missing. Fetching is not tested: it needs npm."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.emoji.scenes import OBJECTS, Size, Sprites
from training.emoji.sprites import load_sprites


def test_every_object_in_every_size(sprites: Sprites) -> None:
    assert set(sprites) == {(name, size) for name in OBJECTS for size in Size}
    for (_, size), sprite in sprites.items():
        assert sprite.shape == (size.pixels, size.pixels, 4)
        assert sprite.dtype == np.float32
        assert 0 <= sprite.min() <= sprite.max() <= 1


def test_load_reads_what_fetch_writes(tmp_path: Path) -> None:
    for name in OBJECTS:
        Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(tmp_path / f"{name.replace(' ', '-')}.webp", lossless=True)
    loaded = load_sprites(tmp_path)
    np.testing.assert_array_equal(loaded["ice cream", Size.SMALL][5, 5], [1, 0, 0, 1])


def test_missing_sprites_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m training\.emoji sprites"):
        load_sprites(tmp_path)
