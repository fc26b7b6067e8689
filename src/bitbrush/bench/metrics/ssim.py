"""Structural similarity between images."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.pairs import require_image_pairs

WINDOW, SIGMA = 11, 1.5
STRIP = 16
"""Rows of window positions computed at once."""
K1, K2, PEAK = 0.01, 0.03, 255.0


def ssim(reference: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> NDArray[np.float64]:
    """`(N,)` float64: structural similarity, 1 for an identical pair, the mean over positions and then channels.

    At every position, with Gaussian-weighted means m, variances v and covariance c of the two windows::

        (2 m1 m2 + C1)(2 c + C2) / ((m1^2 + m2^2 + C1)(v1 + v2 + C2)),   C1 = (K1 L)^2, C2 = (K2 L)^2, L = 255

    Images are uint8 `(N, H, W, 3)`. Raises ValueError where shapes or dtypes do not fit, or an image is smaller than
    the window. Source: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to
    structural similarity", IEEE TIP 2004, equation 13 and section III-C (11 x 11 window, sigma 1.5, windows wholly
    inside the image). Deviations: colour, by averaging over the channels; no downsampling of large images, which the
    authors' later program does.
    """
    require_image_pairs(reference, candidate)
    if min(reference.shape[1:3]) < WINDOW:
        raise ValueError(
            f"images of shapes {reference.shape} and {candidate.shape} are smaller than SSIM's window of "
            f"{WINDOW} x {WINDOW} pixels; use PSNR for images this small"
        )
    pairs = zip(reference, candidate, strict=True)
    return np.array([_similarity(first, second) for first, second in pairs], dtype=np.float64)


def _similarity(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """SSIM of one pair `(H, W, 3)`, strip by strip: what a strip needs stays in the processor's cache."""
    height, width, channels = first.shape
    total = 0.0
    for start in range(0, height - WINDOW + 1, STRIP):
        rows = slice(start, start + STRIP + WINDOW - 1)
        total += float(_similarities(first[rows].astype(np.float64), second[rows].astype(np.float64)).sum())
    return total / int((height - WINDOW + 1) * (width - WINDOW + 1) * channels)


def _similarities(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """At every position of `(H, W, 3)`; of the variances it is only their sum that counts."""
    mean_x, mean_y = _blur(x), _blur(y)
    squares, product = mean_x * mean_x + mean_y * mean_y, mean_x * mean_y
    variances = _blur(x * x + y * y) - squares
    covariance = _blur(x * y) - product
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    similarities: NDArray[np.float64] = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
    return similarities


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(H - 10, W - 10, 3)`: Gaussian-weighted window means, one axis after the other, as the Gaussian separates."""
    height, width = (size - WINDOW + 1 for size in x.shape[:2])
    rows = _weighted([x[k : k + height] for k in range(WINDOW)])
    return _weighted([rows[:, k : k + width] for k in range(WINDOW)])


def _weighted(shifted: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The Gaussian's sum of eleven shifted arrays; equal weights are taken together."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    total: NDArray[np.float64] = weights[WINDOW // 2] * shifted[WINDOW // 2]
    for k in range(WINDOW // 2):
        pair = shifted[k] + shifted[-1 - k]
        pair *= weights[k]
        total += pair
    return total
