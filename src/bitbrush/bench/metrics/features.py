"""Checks of the features that a distance between sets is computed from."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def require_feature_pairs(reference: NDArray[Any], candidate: NDArray[Any]) -> None:
    """Checks that both are finite floats of one shape `(N, D)`, paired by row, with N at least 2.

    Raises:
        ValueError: They are not; the message names shapes, type or image.
    """
    if reference.shape != candidate.shape or reference.ndim != 2 or len(reference) < 2 or not reference.shape[1]:
        raise ValueError(
            f"features have shapes {reference.shape} and {candidate.shape}; both need (N, D), paired by row, with N at "
            "least 2"
        )
    for array in (reference, candidate):
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"features of shape {array.shape} are {array.dtype}; they must be floats")
        broken = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if broken.size:
            raise ValueError(
                f"features of image {broken[0]} are not finite ({broken.size} of {len(array)} images); find out "
                "what broke that image"
            )
