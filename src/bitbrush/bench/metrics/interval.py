"""Confidence intervals of means, differences, ratios and medians, computed by SciPy.

The draws depend on the seed alone, not on how many SciPy makes at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bitbrush.bench.metrics.pairs import require_same_shape

_DRAWS_AT_ONCE = 1 << 20  # 16 MiB of indices and values, however many values and resamples there are


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean (or another figure) of n values and its confidence interval `[low, high]`, in the unit of the values."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_mean(values: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Computes the mean with its percentile bootstrap interval, in float64.

    N values are drawn with replacement, `resamples` times; the interval runs from the `(1 - confidence) / 2` to the
    `(1 + confidence) / 2` quantile of the draws' means. A single value has an interval of no width, which says nothing
    about its precision: look at n. Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section
    13.3.

    Args:
        values: Values `(N,)`.
        confidence: Confidence of the interval.
        resamples: Number of draws.
        seed: Seed of the draws; the same values and seed give the same interval.

    Returns:
        The mean with its interval.

    Raises:
        ValueError: The array is empty or not one-dimensional, a value is not finite, the confidence is outside (0, 1),
            or there are fewer than 2 resamples.
    """
    array = np.asarray(values, dtype=np.float64)
    _require_sample(array)
    draws = _resampled((array,), np.mean, resamples, np.random.default_rng(seed))
    return Interval(float(array.mean()), *_ends(draws, confidence), array.size)


def student_mean(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Computes the mean with Student's t interval, in float64.

    For values that are nearly normal, such as logarithms of errors: there it covers more than the bootstrap, whose
    intervals of few values are too narrow. Source: Student, "The Probable Error of a Mean", Biometrika 6, 1908.

    Args:
        values: Values `(N,)`.
        confidence: Confidence of the interval.

    Returns:
        The mean with its interval, which has no width for a single value.

    Raises:
        ValueError: As :func:`bootstrap_mean`.
    """
    array = np.asarray(values, dtype=np.float64)
    _require_sample(array)
    mean, count = float(array.mean()), array.size
    if count == 1:
        return Interval(mean, mean, mean, 1)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * array.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def bootstrap_difference(
    reference: ArrayLike,
    candidate: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Computes the mean of `candidate - reference` with its percentile bootstrap interval.

    Pairs are drawn as a whole, so what the two have in common (a hard prompt) cancels. An interval without zero
    separates the two.

    Args:
        reference: Values `(N,)`.
        candidate: Values of the same shape, paired by index.
        confidence: Confidence of the interval.
        resamples: Number of draws.
        seed: Seed of the draws.

    Returns:
        The mean difference with its interval.

    Raises:
        ValueError: As :func:`bootstrap_mean`, or the shapes differ.
    """
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    require_same_shape(first, second)
    for array in (first, second):
        _require_sample(array)
    return bootstrap_mean(second - first, confidence=confidence, resamples=resamples, seed=seed)


def bootstrap_gap(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Computes `mean(second) - mean(first)` of independent samples with its percentile bootstrap interval.

    Args:
        first: Values `(N,)`.
        second: Values `(M,)`; each sample is drawn by itself.
        confidence: Confidence of the interval.
        resamples: Number of draws.
        seed: Seed of the draws.

    Returns:
        The difference with its interval; n is N + M.

    Raises:
        ValueError: As :func:`bootstrap_mean`.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    for array in arrays:
        _require_sample(array)
    rng = np.random.default_rng(seed)
    draws = [_resampled((array,), np.mean, resamples, rng) for array in arrays]
    gap = float(arrays[1].mean() - arrays[0].mean())
    return Interval(gap, *_ends(draws[1] - draws[0], confidence), arrays[0].size + arrays[1].size)


def bootstrap_ratio(
    reference: ArrayLike,
    candidate: ArrayLike,
    *,
    statistic: Callable[..., Any] = np.mean,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Computes `statistic(candidate) / statistic(reference)` with its percentile bootstrap interval.

    Pairs are drawn as a whole, as in :func:`bootstrap_difference`. For medians the interval consists of ratios of
    values that occur, so it needs a few more pairs than for means.

    Args:
        reference: Values `(N,)` above 0.
        candidate: Values of the same shape, paired by index.
        statistic: Function that reduces an axis, `np.mean` or `np.median`.
        confidence: Confidence of the interval.
        resamples: Number of draws.
        seed: Seed of the draws.

    Returns:
        The ratio with its interval.

    Raises:
        ValueError: As :func:`bootstrap_difference`, or a value of the reference is not above 0.
    """
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    require_same_shape(first, second)
    for array in (first, second):
        _require_sample(array)
    if first.min() <= 0:
        raise ValueError(f"reference has a value of {first.min()}; a ratio needs values above 0")

    def ratio(reference: NDArray[np.float64], candidate: NDArray[np.float64], axis: int) -> Any:
        return statistic(candidate, axis=axis) / statistic(reference, axis=axis)

    draws = _resampled((first, second), ratio, resamples, np.random.default_rng(seed))
    return Interval(float(ratio(first, second, axis=0)), *_ends(draws, confidence), first.size)


def median_interval(values: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Computes the median and its distribution-free confidence interval, whose ends are two of the values.

    The number of values below the true median is binomial whatever their distribution, so the k-th smallest and the
    k-th largest enclose it with at least the confidence, for the largest k with `P(Bin(N, 1/2) < k)` at most
    `(1 - confidence) / 2`. Source: Conover, "Practical Nonparametric Statistics", 1999, section 3.2.

    Args:
        values: Values `(N,)`.
        confidence: Confidence of the interval.

    Returns:
        Median, low and high; the ends are infinite for fewer than 6 values (at 0.95).

    Raises:
        ValueError: As :func:`bootstrap_mean`.
    """
    array = np.asarray(values, dtype=np.float64)
    _require_sample(array)
    interval = stats.quantile_test(array).confidence_interval(confidence)
    low, high = (-math.inf, math.inf) if math.isnan(interval.low) else (interval.low, interval.high)
    return float(np.median(array)), float(low), float(high)


def median_of(values: ArrayLike) -> Interval:
    """Computes :func:`median_interval` as an interval, whose `mean` is the median."""
    return Interval(*median_interval(values), np.size(values))


def _require_sample(array: NDArray[np.float64]) -> None:
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"values have shape {array.shape}; a mean needs (N,) with N at least 1")
    broken = np.flatnonzero(~np.isfinite(array))
    if broken.size:
        raise ValueError(
            f"value {broken[0]} is {array[broken[0]]} ({broken.size} of {array.size} are not finite); a mean needs "
            "finite values: find out what broke that pair"
        )


def _resampled(
    samples: tuple[NDArray[np.float64], ...], statistic: Callable[..., Any], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draws the paired samples with replacement, `resamples` times, and returns the statistic of each draw."""
    if resamples < 2:
        raise ValueError(f"resamples is {resamples}; at least 2 are needed, 10000 are usual")
    count = samples[0].size
    if count == 1:  # of which SciPy makes no draws
        return np.full(resamples, statistic(*samples, axis=0))
    batch = max(1, _DRAWS_AT_ONCE // count)
    drawn = stats.bootstrap(
        samples,
        statistic,
        n_resamples=resamples,
        batch=batch,
        vectorized=True,
        paired=True,
        method="percentile",
        rng=rng,
    )
    distribution: NDArray[np.float64] = drawn.bootstrap_distribution
    return distribution


def _ends(draws: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Returns the percentile interval of the draws."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it lies between 0 and 1, both excluded")
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
