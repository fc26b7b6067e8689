"""Maximum mean discrepancy between paired sets of features."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.features import require_feature_pairs
from bitbrush.bench.metrics.interval import Interval

_ROWS_AT_ONCE = 512  # blocks of the kernel matrix; the whole is never held

Kernel = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""Features `(N, D)` and `(M, D)` to their kernel matrix `(N, M)`."""


def paired_mmd2(
    reference: NDArray[np.floating[Any]],
    candidate: NDArray[np.floating[Any]],
    kernel: Kernel,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Unbiased squared MMD of pairs `(x_i, y_i)` with its bootstrap interval over pairs.

    ::

        1 / (N (N - 1))  sum over i != j of  k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)

    Features are floats `(N, D)`, computed with in float64. Identical sets have exactly 0; near ones may come out below
    0, as befits an unbiased estimate. A bootstrap draw weighs pair i by how often it was drawn, and a pair drawn twice
    is not compared with itself.

    Raises ValueError where shapes differ or a feature is not finite. Source: Gretton et al., "A Kernel Two-Sample
    Test", JMLR 13, 2012, equation 4, which leaves the terms k(x_i, y_i) out. Here that is not a matter of taste: both
    pictures of a pair show the same prompt, so these terms are not those of independent draws.
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
