"""Structural similarity between images."""

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from bitbrush.bench.metrics.pairs import require_image_pairs

WINDOW, SIGMA, PEAK = 11, 1.5, 255
"""scikit-image derives the window from sigma: 3.5 sigma to each side, 11 pixels across."""


def ssim(reference: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Computes the structural similarity of each pair by scikit-image, in the form of the paper.

    At every position, with Gaussian-weighted means m, variances v and covariance c of the two windows::

        (2 m1 m2 + C1)(2 c + C2) / ((m1^2 + m2^2 + C1)(v1 + v2 + C2)),   C1 = (0.01 L)^2, C2 = (0.03 L)^2, L = 255

    Source: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
    similarity", IEEE TIP 2004, equation 13 and section III-C (11 x 11 window, sigma 1.5, windows wholly inside the
    image). Deviations: colour, by averaging over the channels; no downsampling of large images, which the authors'
    later program does.

    Args:
        reference: uint8 images `(N, H, W, 3)`.
        candidate: images of the same shape, paired by index.

    Returns:
        `(N,)` float64, 1 for an identical pair: the mean over positions and channels.

    Raises:
        ValueError: if shapes or dtypes do not fit, or an image is smaller than the window.
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
    similarity = structural_similarity(
        first, second, data_range=PEAK, channel_axis=-1, gaussian_weights=True, sigma=SIGMA, use_sample_covariance=False
    )
    return float(similarity)
