"""Detection of broken images, which an average would hide."""

import numpy as np
from numpy.typing import NDArray

BLACK_LEVEL = 4
"""Largest value, of 255, of a black image."""
CONSTANT_SPREAD = 2.0
"""Bound of the standard deviation, averaged over the channels, below which an image shows nothing."""


def defects(images: NDArray[np.uint8]) -> list[str]:
    """Names the defect of each image `(N, H, W, 3)`: `"black"`, `"constant"`, or `""` for none.

    Generation stores a black image where the model yields NaN; so do pipelines whose safety checker intervenes.
    """
    return [_defect(image) for image in images]


def _defect(image: NDArray[np.uint8]) -> str:
    if image.max() <= BLACK_LEVEL:
        return "black"
    if image.std(axis=(0, 1)).mean() < CONSTANT_SPREAD:
        return "constant"
    return ""
