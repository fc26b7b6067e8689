"""Kernel distance with the cubic kernel: KID without the terms of pairs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.metrics.kernel_distance import paired_mmd2


def kid(reference: NDArray[np.floating[Any]], candidate: NDArray[np.floating[Any]]) -> Interval:
    """Computes the unbiased squared MMD with the kernel `(x . y / D + 1)^3`.

    Source: Binkowski et al., arXiv 1801.01401, section 4. Deviations: all images at once, where the paper averages over
    random subsets, which is faster and varies more; and the terms of a pair are left out, see `kernel_distance`.
    Expected values are the same for independent sets. Of two paired sets it is another figure than the published one,
    so tables call it "KID, unpaired terms".

    Args:
        reference: Features `(N, D)`.
        candidate: Features of the same shape, paired by row.

    Returns:
        The distance with its bootstrap interval.

    Raises:
        ValueError: Shapes differ, or a feature is not finite.
    """
    return paired_mmd2(reference, candidate, _cubic)


def _cubic(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel
