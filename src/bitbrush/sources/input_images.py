"""Pictures that image-to-image and inpainting pipelines start from."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read_inputs(images: Path | None, masks: Path | None) -> dict[str, list[Image.Image]]:
    """What of the two folders is given, by the pipelines' names for it. Raises ValueError as :func:`read_images`."""
    folders = {"image": images, "mask_image": masks}
    return {name: read_images(folder) for name, folder in folders.items() if folder}


def read_images(folder: Path) -> list[Image.Image]:
    """The pictures of a folder in the order of their names, RGB. Raises ValueError if it has none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{folder} holds no pictures; a folder of {', '.join(SUFFIXES)} files is needed")
    return [read_image(path) for path in paths]


def read_image(path: Path) -> Image.Image:
    """Raises ValueError, naming the file, if it is no picture."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"picture {path} cannot be read: {error}") from error


def inputs_digest(inputs: Mapping[str, Sequence[Any]]) -> str:
    """SHA-256 over the pictures that a pipeline starts from, pixel by pixel."""
    digest = hashlib.sha256()
    for name, values in sorted(inputs.items()):
        for value in values:
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(value), allow_pickle=False)
            digest.update(name.encode() + buffer.getvalue())
    return digest.hexdigest()
