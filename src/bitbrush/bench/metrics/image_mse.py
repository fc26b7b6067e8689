"""Mean squared error between images."""

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.pairs import require_image_pairs


def image_mse(reference: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Computes the mean of `((reference - candidate) / 255)^2` over pixels and channels of each pair.

    The squares are summed as integers, exactly, one pair at a time, so memory does not grow with N.

    Args:
        reference: uint8 images `(N, H, W, 3)`.
        candidate: Images of the same shape, paired by index.

    Returns:
        Errors, `(N,)` float64 in [0, 1].

    Raises:
        ValueError: Shapes or dtypes do not fit.
    """
    require_image_pairs(reference, candidate)
    values = np.empty(len(reference), dtype=np.float64)
    for index, (first, second) in enumerate(zip(reference, candidate, strict=True)):
        difference = first.astype(np.int64) - second
        values[index] = np.sum(difference * difference) / (difference.size * 255**2)
    return values
