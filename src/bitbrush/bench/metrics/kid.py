"""Kernel distance with the cubic kernel; with the standard Inception's features it is KID."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.metrics.kernel_distance import paired_mmd2


def kid(reference: NDArray[np.floating[Any]], candidate: NDArray[np.floating[Any]]) -> Interval:
    """Unbiased squared MMD of features `(N, D)`, paired by row, with the kernel `(x . y / D + 1)^3`.

    Source: Binkowski et al., arXiv 1801.01401, section 4. Deviations: all pictures at once, where the paper and others
    average over random subsets to save time, at the price of more variance; and the terms of a pair left out, see
    `kernel_distance`. Expected values are the same for independent sets.
    """
    return paired_mmd2(reference, candidate, _cubic)


def _cubic(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel
