"""Folders of pictures to start from."""

from pathlib import Path

import pytest
from PIL import Image

from bitbrush.sources.input_images import read_image, read_images


def test_pictures_come_in_the_order_of_their_names_and_in_colour(tmp_path: Path) -> None:
    for name, mode in (("b.png", "L"), ("a.JPG", "RGB"), ("c.webp", "RGBA")):
        Image.new(mode, (4, 3)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    images = read_images(tmp_path)
    assert [(image.mode, image.size) for image in images] == [("RGB", (4, 3))] * 3


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=f"{folder} holds no images; a folder of .png"):
            read_images(folder)
    (tmp_path / "a.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(ValueError, match=r"image .*a\.png cannot be read"):
        read_images(tmp_path)
    with pytest.raises(ValueError, match=r"image .*b\.png cannot be read"):
        read_image(tmp_path / "b.png")
