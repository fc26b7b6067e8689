"""Bootstrap intervals: coverage, agreement with the definition, repeatability, and what they refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bitbrush.bench.metrics import interval
from bitbrush.bench.metrics.interval import (
    Interval,
    bootstrap_difference,
    bootstrap_gap,
    bootstrap_mean,
    bootstrap_ratio,
    median_interval,
)


def resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """Draws by the definition, all at once."""
    return values[np.random.default_rng(seed).integers(0, values.size, size=(10_000, values.size))]


@pytest.mark.parametrize("count", [2, 60, 300])
def test_agrees_with_the_definition(count: int) -> None:
    """300 values are more than SciPy draws at once here."""
    values = np.random.default_rng(1).gamma(2.0, size=count) + 1e-3
    other = values * np.random.default_rng(2).uniform(0.8, 1.4, size=count)

    def expected(draws: np.ndarray) -> object:
        return pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist(), rel=1e-12)

    mean = bootstrap_mean(values, seed=5)
    assert (mean.mean, mean.n) == (values.mean(), count)
    assert [mean.low, mean.high] == expected(resampled(values, 5).mean(axis=1))
    ratio = bootstrap_ratio(values, other, seed=5, statistic=np.median)
    medians = [np.median(resampled(array, 5), axis=1) for array in (values, other)]
    assert [ratio.low, ratio.high] == expected(medians[1] / medians[0])
    gap = bootstrap_gap(values, np.zeros(1), seed=5)
    assert [gap.low, gap.high] == expected(-resampled(values, 5).mean(axis=1))


def test_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    intervals = [bootstrap_mean(rng.normal(3.0, size=40), confidence=0.9, resamples=500) for _ in range(300)]
    assert 0.83 < np.mean([low.low <= 3.0 <= low.high for low in intervals]) < 0.95


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_lies_within_the_values(values: list[float]) -> None:
    result = bootstrap_mean(values, resamples=200)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= result.low <= result.high <= max(values) + slack


def test_repeatable_and_seeded() -> None:
    values = np.random.default_rng(0).normal(size=20)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_drawn_in_pieces_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=37)
    whole = bootstrap_mean(values, resamples=1001)
    monkeypatch.setattr(interval, "_DRAWS_AT_ONCE", 100)
    assert bootstrap_mean(values, resamples=1001) == whole


def test_a_single_value_has_no_width() -> None:
    assert bootstrap_mean([2.5]) == Interval(mean=2.5, low=2.5, high=2.5, n=1)


def test_pairing_cancels_what_the_pairs_share() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(30, 5, size=64)
    candidate = reference + 0.5 + rng.normal(0, 0.1, size=64)
    difference = bootstrap_difference(reference, candidate)
    assert 0.4 < difference.low < difference.mean < difference.high < 0.6
    assert difference.n == 64
    reverse = bootstrap_difference(candidate, reference)
    assert (reverse.low, reverse.high) == pytest.approx((-difference.high, -difference.low), abs=0.01)


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_a_ratio_of_pairs_is_sharper_than_the_pairs_are_alike(statistic: Callable[..., Any]) -> None:
    rng = np.random.default_rng(1)
    reference = rng.gamma(0.5, size=64) + 1e-3  # spread over orders of magnitude, as errors are
    candidate = reference * rng.uniform(1.2, 1.4, size=64)
    ratio = bootstrap_ratio(reference, candidate, statistic=statistic)
    assert ratio.mean == statistic(candidate) / statistic(reference)
    assert 1.15 < ratio.low < ratio.mean < ratio.high < 1.45
    assert ratio.n == 64
    assert bootstrap_ratio(reference, 2 * reference, statistic=statistic).low == 2
    with pytest.raises(ValueError, match="a ratio needs values above 0"):
        bootstrap_ratio([0.0, 1.0], [1.0, 1.0])


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        bootstrap_mean(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="value 1 is nan"):
        bootstrap_mean([1.0, np.nan])
    with pytest.raises(ValueError, match="value 0 is inf"):
        bootstrap_difference([np.inf], [np.inf])
    with pytest.raises(ValueError, match="confidence is 95"):
        bootstrap_mean([1.0], confidence=95)
    for few in (0, 1):
        with pytest.raises(ValueError, match=f"resamples is {few}"):
            bootstrap_mean([1.0], resamples=few)
    with pytest.raises(ValueError, match=r"\(2,\), candidate \(1,\)"):
        bootstrap_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize("count", [6, 7, 16, 25, 100, 3000])
def test_the_medians_interval_is_the_narrowest_of_order_statistics(count: int) -> None:
    values = np.random.default_rng(count).gamma(2.0, size=count)
    median, low, high = median_interval(values)
    assert median == np.median(values)
    k = np.searchsorted(np.sort(values), low) + 1
    assert (low, high) == (np.sort(values)[k - 1], np.sort(values)[-k])
    assert stats.binom.cdf(k - 1, count, 0.5) <= 0.025 < stats.binom.cdf(k, count, 0.5)


def test_a_few_values_do_not_bound_their_median() -> None:
    assert median_interval([1.0, 3.0, 2.0, 9.0, 4.0]) == (3.0, -np.inf, np.inf)
    with pytest.raises(ValueError, match="value 1 is nan"):
        median_interval([1.0, np.nan])
