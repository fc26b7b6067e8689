"""Structural similarity between images."""

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.pairs import require_image_pairs

WINDOW, SIGMA = 11, 1.5
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
    """SSIM of one pair `(H, W, 3)`."""
    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x * mean_x
    variance_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x * mean_x + mean_y * mean_y + c1) * (variance_x + variance_y + c2)
    return float(np.mean(numerator / denominator))


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(H - 10, W - 10, 3)`: Gaussian-weighted window means, one axis after the other, as the Gaussian separates."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    height, width = (size - WINDOW + 1 for size in x.shape[:2])
    rows = sum((weight * x[k : k + height] for k, weight in enumerate(weights)), start=np.zeros(1))
    return sum((weight * rows[:, k : k + width] for k, weight in enumerate(weights)), start=np.zeros(1))
