"""Peak signal-to-noise ratio between images."""

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.image_mse import image_mse

IDENTICAL_DB = 100.0
"""What an identical pair counts as, in dB: its infinity would make every mean infinite, and JSON has no such number.

The smallest difference 8-bit images can have, 1 in one channel of one pixel, stays below it up to 226 x 226 pixels and
is cut off to it beyond, at an error nobody can see.
"""


def psnr(reference: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> NDArray[np.float64]:
    """`(N,)` float64 in dB: `-10 log10(MSE)` with the error on the [0, 1] scale, at most IDENTICAL_DB.

    Images are uint8 `(N, H, W, 3)`; the error is averaged over pixels and channels before the logarithm. Raises
    ValueError where shapes or dtypes do not fit.
    """
    mse = np.maximum(image_mse(reference, candidate), 10.0 ** (-IDENTICAL_DB / 10))
    decibels: NDArray[np.float64] = -10.0 * np.log10(mse)
    return decibels
