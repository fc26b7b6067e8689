"""Pictures that no average should hide."""

import numpy as np
from numpy.typing import NDArray

BLACK_LEVEL = 4
"""A picture whose every value is at most this, of 255, is black."""
CONSTANT_SPREAD = 2.0
"""A picture whose standard deviation, averaged over the channels, is below this shows nothing."""


def defects(images: NDArray[np.uint8]) -> list[str]:
    """For each of the pictures `(N, H, W, 3)`: `"black"`, `"constant"`, or `""` for none.

    Where the model yields NaN, generation keeps a black picture; so do pipelines whose safety checker strikes.
    """
    return [_defect(image) for image in images]


def _defect(image: NDArray[np.uint8]) -> str:
    if image.max() <= BLACK_LEVEL:
        return "black"
    if image.std(axis=(0, 1)).mean() < CONSTANT_SPREAD:
        return "constant"
    return ""
