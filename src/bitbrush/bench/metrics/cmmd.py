"""Kernel distance between CLIP embeddings: CMMD without the terms of pairs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.features import require_feature_pairs
from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.metrics.kernel_distance import paired_mmd2

SIGMA, SCALE = 10.0, 1000.0


def cmmd(reference: NDArray[np.floating[Any]], candidate: NDArray[np.floating[Any]]) -> Interval:
    """Computes CMMD: 1000 times the unbiased squared MMD of normalized embeddings.

    The kernel is `exp(-|x - y|^2 / (2 sigma^2))`, sigma 10. Source: Jayasumana et al., arXiv 2401.09603, section 4.
    Deviation: the unbiased estimate without the terms of pairs (see `kernel_distance`), where the authors' program
    keeps the diagonal. Tables call it "CMMD, unpaired terms".

    Args:
        reference: Embeddings `(N, D)`; they are divided by their length.
        candidate: Embeddings of the same shape, paired by row.

    Returns:
        The distance with its bootstrap interval.

    Raises:
        ValueError: Shapes differ, or an embedding has length 0 or is not finite.
    """
    require_feature_pairs(reference, candidate)
    interval = paired_mmd2(normalized(reference), normalized(candidate), _gaussian)
    return Interval(interval.mean * SCALE, interval.low * SCALE, interval.high * SCALE, interval.n)


def normalized(embeddings: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Divides every row by its length, in float64.

    Raises:
        ValueError: A row is all zeros.
    """
    rows = embeddings.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    empty = np.flatnonzero(lengths == 0)
    if empty.size:
        raise ValueError(f"embedding {empty[0]} is all zeros; it has no direction")
    directions: NDArray[np.float64] = rows / lengths
    return directions


def _gaussian(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = 2.0 - 2.0 * (x @ y.T)  # rows have length 1
    kernel: NDArray[np.float64] = np.exp(-squares / (2 * SIGMA**2))
    return kernel
