"""Maximum mean discrepancy between paired sets of features."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.features import require_feature_pairs
from bitbrush.bench.metrics.interval import Interval

_ROWS_AT_ONCE = 512  # blocks of the kernel matrix, which is never whole in memory

Kernel = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""Function from features `(N, D)` and `(M, D)` to their kernel matrix `(N, M)`."""


def paired_mmd2(
    reference: NDArray[np.floating[Any]],
    candidate: NDArray[np.floating[Any]],
    kernel: Kernel,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Computes the unbiased squared MMD of pairs `(x_i, y_i)` with its bootstrap interval over pairs.

    ::

        1 / (N (N - 1))  sum over i != j of  k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)

    Identical sets have exactly 0; the unbiased estimate of near ones may be below 0. A bootstrap draw weighs pair i by
    how often it was drawn, and a pair drawn twice is not compared with itself.

    Source: Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012, equation 4, which leaves out the terms
    k(x_i, y_i). This is necessary here: both images of a pair show the same prompt, so these terms are not those of
    independent draws.

    Args:
        reference: Features `(N, D)`; computation is in float64.
        candidate: Features of the same shape, paired by row.
        kernel: Kernel.
        confidence: Confidence of the interval.
        resamples: Number of bootstrap draws.
        seed: Seed of the draws.

    Returns:
        The distance with its interval.

    Raises:
        ValueError: Shapes differ, or a feature is not finite.
    """
    require_feature_pairs(reference, candidate)
    if np.array_equal(reference, candidate):
        return Interval(0.0, 0.0, 0.0, len(reference))
    x, y = reference.astype(np.float64), candidate.astype(np.float64)
    count = len(x)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    weights = np.concatenate([np.ones((1, count)), draws])
    sums = np.zeros(len(weights))
    for start in range(0, count, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        block = (kernel(x[rows], x) - kernel(x[rows], y)) + (kernel(y[rows], y) - kernel(y[rows], x))
        block[np.arange(len(block)), np.arange(len(block)) + start] = 0.0
        sums += np.einsum("rn,rn->r", weights[:, rows], weights @ block.T)
    pairs = weights.sum(axis=1) ** 2 - (weights * weights).sum(axis=1)
    estimates = sums / np.maximum(pairs, 1.0)
    low, high = np.quantile(estimates[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean=float(estimates[0]), low=float(low), high=float(high), n=count)
