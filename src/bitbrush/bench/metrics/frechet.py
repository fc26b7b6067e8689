"""Fréchet distance between sets of features; with the standard Inception's features it is FID."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.features import require_feature_pairs
from bitbrush.bench.metrics.interval import Interval


def frechet_distance(reference: NDArray[np.floating[Any]], candidate: NDArray[np.floating[Any]]) -> float:
    """Squared Fréchet distance of the two normal distributions that have the features' means and covariances.

    ::

        |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))

    Features are floats `(N, D)`, computed with in float64; covariances are the unbiased ones (divided by N - 1). At
    finite N the distance of two samples of one distribution is above 0, the more the smaller N is against D: compare
    it with a floor of the same N. Identical sets have exactly 0.

    Raises ValueError where shapes differ or a feature is not finite. Source: Heusel et al., arXiv 1706.08500, section 2
    (FID); Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982. Deviation: the
    trace of the root is the nuclear norm of F1 F2^T, where F^T F = S comes from the centred features themselves. The
    usual root of S1 S2 squares their condition number and needs help where N < D.
    """
    require_feature_pairs(reference, candidate)
    if np.array_equal(reference, candidate):
        return 0.0
    return _distance(reference.astype(np.float64), candidate.astype(np.float64))


def frechet_interval(
    reference: NDArray[np.floating[Any]],
    candidate: NDArray[np.floating[Any]],
    *,
    confidence: float = 0.95,
    resamples: int = 100,
    seed: int = 0,
) -> Interval:
    """:func:`frechet_distance` with an interval for its chance, paired features drawn together by row.

    A bootstrap sample holds a third fewer distinct pictures, so its distance is biased upward against the sample's as
    that is against the truth. The basic bootstrap interval `[2 d - q_high, 2 d - q_low]` mirrors the draws' quantiles
    and so takes one such bias out of both ends (Davison and Hinkley, "Bootstrap Methods and their Application", 1997,
    section 5.2); it is cut at 0 and always holds the distance d itself. What it does not tell is the bias that d has
    at this N; the floor does.
    """
    distance = frechet_distance(reference, candidate)
    if np.array_equal(reference, candidate):
        return Interval(0.0, 0.0, 0.0, len(reference))
    first, second = reference.astype(np.float64), candidate.astype(np.float64)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(first), size=(resamples, len(first)))
    distances = [_distance(first[rows], second[rows]) for rows in draws]
    low, high = np.quantile(distances, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(
        mean=distance,
        low=float(min(distance, max(0.0, 2 * distance - high))),
        high=float(max(distance, 2 * distance - low)),
        n=len(reference),
    )


def _distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    shift = first.mean(axis=0) - second.mean(axis=0)
    factor1, factor2 = _factor(first), _factor(second)
    root_trace = np.linalg.svd(factor1 @ factor2.T, compute_uv=False).sum()
    spread = np.sum(factor1 * factor1) + np.sum(factor2 * factor2) - 2 * root_trace
    return float(max(0.0, shift @ shift + spread))


def _factor(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """`F` of at most D rows with `F^T F` the covariance."""
    centred: NDArray[np.float64] = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    triangle: NDArray[np.float64] = np.linalg.qr(centred, mode="r")  # type: ignore[assignment]  # numpy's stub says QRResult
    return triangle
