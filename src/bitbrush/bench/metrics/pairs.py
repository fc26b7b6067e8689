"""Checks of the two arrays of a paired metric."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def require_image_pairs(reference: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> None:
    """Checks that both are uint8 images `(N, H, W, 3)` of one shape.

    Raises:
        ValueError: They are not; the message names both shapes.
    """
    require_same_shape(reference, candidate)
    if reference.ndim != 4 or reference.shape[-1] != 3 or 0 in reference.shape[1:]:
        raise ValueError(
            f"reference and candidate have shapes {reference.shape} and {candidate.shape}; images are (N, H, W, 3)"
        )
    if reference.dtype != np.uint8 or candidate.dtype != np.uint8:
        raise ValueError(
            f"reference {reference.shape} is {reference.dtype} and candidate {candidate.shape} is {candidate.dtype}; "
            "images are uint8, so that a metric sees what a PNG file holds"
        )


def require_same_shape(reference: NDArray[Any], candidate: NDArray[Any]) -> None:
    """Checks that the shapes are equal; numpy would broadcast some unequal ones silently.

    Raises:
        ValueError: They differ; the message names both.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"reference has shape {reference.shape}, candidate {candidate.shape}; pairs need one shape")
