"""Mean squared error between images."""

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.pairs import require_image_pairs


def image_mse(reference: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> NDArray[np.float64]:
    """`(N,)` float64: the mean over pixels and channels of `((reference - candidate) / 255)^2`, in [0, 1].

    Images are uint8 `(N, H, W, 3)`. The squares are summed as integers, exactly, one pair at a time, so memory does not
    grow with N. Raises ValueError where shapes or dtypes do not fit.
    """
    require_image_pairs(reference, candidate)
    values = np.empty(len(reference), dtype=np.float64)
    for index, (first, second) in enumerate(zip(reference, candidate, strict=True)):
        difference = first.astype(np.int64) - second
        values[index] = np.sum(difference * difference) / (difference.size * 255**2)
    return values
