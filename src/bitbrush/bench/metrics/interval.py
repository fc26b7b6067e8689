"""A mean with its bootstrap confidence interval."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitbrush.bench.metrics.pairs import require_same_shape

_DRAWS_AT_ONCE = 1 << 20  # 16 MiB of indices and values, however many values and resamples there are


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean of n values and the confidence interval `[low, high]` of that mean, in the unit of the values."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_mean(values: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of `values` `(N,)` with its percentile bootstrap interval, computed in float64.

    N values are drawn with replacement, `resamples` times; the interval runs from the `(1 - confidence) / 2` to the
    `(1 + confidence) / 2` quantile of the draws' means. The same values and seed give the same interval. A single value
    has an interval of no width, which says nothing about its precision: look at n.

    Raises ValueError for an array that is empty or not one-dimensional, a value that is not finite (by its index), a
    confidence outside (0, 1) or no resamples. Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
    section 13.3.
    """
    array = np.asarray(values, dtype=np.float64)
    _require_sample(array)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it lies between 0 and 1, both excluded")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; at least 1 is needed, 10000 are usual")
    means = np.concatenate(list(_resampled_means(array, resamples, np.random.default_rng(seed))))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean=float(array.mean()), low=float(low), high=float(high), n=array.size)


def bootstrap_difference(
    reference: ArrayLike,
    candidate: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of `candidate - reference`, both `(N,)` and paired by index, with its percentile bootstrap interval.

    Pairs are drawn as a whole, so what the two have in common (a hard prompt) cancels. An interval that does not hold
    zero separates the two. Raises ValueError as `bootstrap_mean`, and where the shapes differ.
    """
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    require_same_shape(first, second)
    for array in (first, second):
        _require_sample(array)
    return bootstrap_mean(second - first, confidence=confidence, resamples=resamples, seed=seed)


def bootstrap_gap(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """`mean(second) - mean(first)` of independent samples `(N,)` and `(M,)`, with its percentile bootstrap interval.

    Each sample is drawn from itself, so nothing is assumed to pair them; n is N + M. Raises ValueError as
    `bootstrap_mean`.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    for array in arrays:
        _require_sample(array)
    rng = np.random.default_rng(seed)
    draws = [np.concatenate(list(_resampled_means(array, resamples, rng))) for array in arrays]
    low, high = np.quantile(draws[1] - draws[0], [(1 - confidence) / 2, (1 + confidence) / 2])
    gap = float(arrays[1].mean() - arrays[0].mean())
    return Interval(mean=gap, low=float(low), high=float(high), n=arrays[0].size + arrays[1].size)


def bootstrap_ratio(
    reference: ArrayLike,
    candidate: ArrayLike,
    *,
    statistic: Callable[..., Any] = np.mean,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """`statistic(candidate) / statistic(reference)` of paired values `(N,)`, with its percentile bootstrap interval.

    `statistic` reduces the axis it is given: `np.mean` or `np.median`. Pairs are drawn as a whole, as
    `bootstrap_difference` does; of medians the interval holds ratios of values that occur, so a few more pairs than
    for means are wanted. Raises ValueError as `bootstrap_difference`, and for a reference that is not above 0.
    """
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    require_same_shape(first, second)
    for array in (first, second):
        _require_sample(array)
    if first.min() <= 0:
        raise ValueError(f"reference has a value of {first.min()}; a ratio needs values above 0")
    rng = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // first.size)
    ratios = []
    for start in range(0, resamples, rows):
        draws = rng.integers(0, first.size, size=(min(rows, resamples - start), first.size))
        ratios.append(statistic(second[draws], axis=1) / statistic(first[draws], axis=1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(second, axis=0) / statistic(first, axis=0)), float(low), float(high), first.size)


def median_interval(values: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """The median of `values` `(N,)` and a confidence interval of it between two of the values, `(median, low, high)`.

    The number of values below the true median is binomial whatever their distribution, so the k-th smallest and the
    k-th largest enclose it with at least the confidence, k being as large as it may: `P(Bin(N, 1/2) < k)` is at most
    `(1 - confidence) / 2`. With fewer than 6 values (at 0.95) no two values do, and the bounds are infinite. Raises
    ValueError as `bootstrap_mean`. Source: Conover, "Practical Nonparametric Statistics", 1999, section 3.2.
    """
    array = np.sort(np.asarray(values, dtype=np.float64))
    _require_sample(array)
    below, k = 0.5**array.size, 0
    while below <= (1 - confidence) / 2:
        k += 1
        below += math.comb(array.size, k) * 0.5**array.size
    low, high = (array[k - 1], array[-k]) if k else (-math.inf, math.inf)
    return float(np.median(array)), float(low), float(high)


def _require_sample(array: NDArray[np.float64]) -> None:
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"values have shape {array.shape}; a mean needs (N,) with N at least 1")
    broken = np.flatnonzero(~np.isfinite(array))
    if broken.size:
        raise ValueError(
            f"value {broken[0]} is {array[broken[0]]} ({broken.size} of {array.size} are not finite); a mean needs "
            "finite values: find out what broke that pair"
        )


def _resampled_means(
    array: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """Means of draws with replacement, `resamples` in all, as many at once as memory is meant to hold."""
    rows = max(1, _DRAWS_AT_ONCE // array.size)
    for start in range(0, resamples, rows):
        draws = rng.integers(0, array.size, size=(min(rows, resamples - start), array.size))
        yield array[draws].mean(axis=1)
