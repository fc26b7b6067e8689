"""CLIP score: how well images match their texts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.cmmd import normalized
from bitbrush.bench.metrics.pairs import require_same_shape


def clip_score(images: NDArray[np.floating[Any]], texts: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Computes the CLIP score `100 max(cos(image, text), 0)` of each pair of embeddings.

    Values of different CLIP models cannot be compared. Source: Hessel et al., arXiv 2104.08718, equation 1. Deviation:
    the factor is 100, as in diffusion papers, instead of 2.5.

    Args:
        images: Embeddings of images, `(N, D)`.
        texts: Embeddings of their texts, `(N, D)`, paired by row.

    Returns:
        Scores, `(N,)` float64.

    Raises:
        ValueError: Shapes differ, or an embedding is zero.
    """
    require_same_shape(images, texts)
    cosines = np.sum(normalized(images) * normalized(texts), axis=1)
    scores: NDArray[np.float64] = 100 * np.maximum(cosines, 0.0)
    return scores
