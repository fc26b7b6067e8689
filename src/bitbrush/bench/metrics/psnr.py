"""Peak signal-to-noise ratio between images."""

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.image_mse import image_mse

IDENTICAL_DB = 100.0
"""Value of an identical pair in dB: infinity would make every mean infinite, and JSON has no such number.

The smallest difference of 8-bit images, 1 in one channel of one pixel, stays below it up to 226 x 226 pixels. Beyond
that it is cut off, at an error nobody can see.
"""


def psnr(reference: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Computes `-10 log10(MSE)` of each pair, with the error on the [0, 1] scale, at most IDENTICAL_DB.

    The error is averaged over pixels and channels before the logarithm.

    Args:
        reference: uint8 images `(N, H, W, 3)`.
        candidate: Images of the same shape, paired by index.

    Returns:
        Decibels, `(N,)` float64.

    Raises:
        ValueError: Shapes or dtypes do not fit.
    """
    mse = np.maximum(image_mse(reference, candidate), 10.0 ** (-IDENTICAL_DB / 10))
    decibels: NDArray[np.float64] = -10.0 * np.log10(mse)
    return decibels
