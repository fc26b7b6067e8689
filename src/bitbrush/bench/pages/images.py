"""Images as `data:` addresses, so that a page needs no other file."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDEST = 128
"""Images of more pixels are shown smaller, as WebP: a page with hundreds of large PNG files would not open."""
SHOWN = 384
"""Width and height of large images on a page, at most."""


def image_uri(image: NDArray[np.uint8]) -> str:
    """Returns the image `(H, W, 3)` as a `data:` address: every pixel as PNG up to WIDEST, else smaller and as WebP."""
    if max(image.shape[:2]) <= WIDEST:
        return png_uri(image)
    small = Image.fromarray(image)
    small.thumbnail((SHOWN, SHOWN))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=88)
    return _address("image/webp", buffer.getvalue())


def png_uri(image: NDArray[np.uint8]) -> str:
    """Returns the image `(H, W, 3)` as a `data:` address of a PNG, every pixel kept."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return _address("image/png", buffer.getvalue())


def size_note(image: NDArray[np.uint8]) -> str:
    """Returns a sentence on images that are shown smaller than they are, else nothing."""
    return f"Shown at {SHOWN} pixels; figures are of the images themselves." if max(image.shape[:2]) > WIDEST else ""


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
