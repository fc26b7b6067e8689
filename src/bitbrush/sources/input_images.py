"""Input images of image-to-image and inpainting pipelines."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read_inputs(images: Path | None, masks: Path | None) -> dict[str, list[Image.Image]]:
    """Reads the images of the given folders, by the pipelines' argument names ``image`` and ``mask_image``.

    Raises:
        ValueError: A folder has no images, or an image cannot be read.
    """
    folders = {"image": images, "mask_image": masks}
    return {name: read_images(folder) for name, folder in folders.items() if folder}


def read_images(folder: Path) -> list[Image.Image]:
    """Reads the images of a folder in the order of their names, as RGB.

    Raises:
        ValueError: The folder has no images, or one cannot be read.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{folder} holds no images; a folder of {', '.join(SUFFIXES)} files is needed")
    return [read_image(path) for path in paths]


def read_image(path: Path) -> Image.Image:
    """Reads an image as RGB.

    Raises:
        ValueError: The file is not an image; the message names it.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"image {path} cannot be read: {error}") from error


def inputs_digest(inputs: Mapping[str, Sequence[Any]]) -> str:
    """Computes the SHA-256 over the images that a pipeline starts from, pixel by pixel."""
    digest = hashlib.sha256()
    for name, values in sorted(inputs.items()):
        for value in values:
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(value), allow_pickle=False)
            digest.update(name.encode() + buffer.getvalue())
    return digest.hexdigest()
