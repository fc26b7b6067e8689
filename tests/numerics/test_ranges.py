"""Range estimators: what each promises of the grids it makes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitbrush.numerics.affine import QParams, fake_quantize
from bitbrush.numerics.histogram import BINS, Histogram
from bitbrush.numerics.limits import RangeEstimator
from bitbrush.numerics.ranges import PERCENTILE, find_qparams

SEEDS = st.integers(0, 2**32)
BITS = st.integers(3, 10)


def heavy_tailed(seed: int, *, size: int = 20_000, shift: float = 0.0) -> Tensor:
    """Student's t of three degrees of freedom: a few values far from all others."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(4, size, generator=generator)
    return normal[0] / (normal[1:].square().mean(0)).sqrt() + shift


def grid_of(estimator: RangeEstimator, x: Tensor, bits: int) -> QParams:
    (qparams,) = find_qparams(estimator, [Histogram.of(x)], [bits])
    return qparams


def error(x: Tensor, qparams: QParams, *, power: int = 2) -> float:
    return float((x - fake_quantize(x, qparams)).double().abs().pow(power).mean())


@given(SEEDS, BITS)
def test_min_max_clips_nothing(seed: int, bits: int) -> None:
    x = heavy_tailed(seed)
    qparams = grid_of(RangeEstimator.MIN_MAX, x, bits)
    assert qparams == QParams.from_range(float(x.min()), float(x.max()), bits)
    assert (x - fake_quantize(x, qparams)).abs().max() <= qparams.scale * 0.5001


@pytest.mark.parametrize(("estimator", "power"), [(RangeEstimator.MSE, 2), (RangeEstimator.L4, 4)])
@given(seed=SEEDS, bits=BITS, shift=st.sampled_from([0.0, 2.0, -5.0]))
def test_search_is_no_worse_than_min_max(
    estimator: RangeEstimator, power: int, seed: int, bits: int, shift: float
) -> None:
    x = heavy_tailed(seed, shift=shift)
    searched, whole = (error(x, grid_of(e, x, bits), power=power) for e in (estimator, RangeEstimator.MIN_MAX))
    # The search knows bins, not values: what a bin's width hides is at most that of 1/1024 of the range.
    slack = (Histogram.of(x).centers[1] - Histogram.of(x).centers[0]).item() ** power
    assert searched <= whole + slack


@given(SEEDS, st.integers(3, 6))
def test_mse_is_clearly_better_at_few_bits(seed: int, bits: int) -> None:
    x = heavy_tailed(seed)
    assert error(x, grid_of(RangeEstimator.MSE, x, bits)) < 0.8 * error(x, grid_of(RangeEstimator.MIN_MAX, x, bits))


@given(SEEDS, BITS)
def test_fourth_power_clips_less_than_the_square(seed: int, bits: int) -> None:
    x = heavy_tailed(seed)
    square, fourth = (grid_of(estimator, x, bits) for estimator in (RangeEstimator.MSE, RangeEstimator.L4))
    assert fourth.scale >= square.scale


@given(SEEDS, BITS)
def test_percentile_is_better_in_the_bulk(seed: int, bits: int) -> None:
    x = heavy_tailed(seed)
    bulk = x[x.abs() <= x.abs().quantile(0.999)]
    percentile, whole = (grid_of(e, x, bits) for e in (RangeEstimator.PERCENTILE, RangeEstimator.MIN_MAX))
    assert percentile.scale < whole.scale
    assert error(bulk, percentile) < error(bulk, whole)


@given(SEEDS)
def test_percentile_is_that_of_the_values(seed: int) -> None:
    x = heavy_tailed(seed, size=50_000)
    qparams = grid_of(RangeEstimator.PERCENTILE, x, 16)
    tail = (1 - PERCENTILE) / 2
    width = (Histogram.of(x).centers[1] - Histogram.of(x).centers[0]).item()
    ordered = x.sort().values
    rank = int(tail * len(x))
    # The bin of the wanted order statistic, give or take its neighbours in the sorted sample.
    assert ordered[max(rank - 1, 0)] - width <= qparams.range[0] <= ordered[rank + 1] + width
    assert ordered[-rank - 2] - width <= qparams.range[1] <= ordered[-max(rank, 1)] + width


@pytest.mark.parametrize("estimator", list(RangeEstimator))
@given(seed=SEEDS, bits=st.integers(2, 16), low=st.integers(-8, 8), width=st.sampled_from([0.0, 1e-4, 1.0, 9.0]))
def test_grids_stay_within_what_was_observed(
    estimator: RangeEstimator, seed: int, bits: int, low: int, width: float
) -> None:
    x = low + width * torch.rand(500, generator=torch.Generator().manual_seed(seed))
    qparams = grid_of(estimator, x, bits)
    observed_low, observed_high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    if observed_low == observed_high:
        assert qparams == QParams(1.0, 0, bits)
    else:
        # Rounding the zero point moves the range by half a step at most.
        assert qparams.range[0] >= observed_low - 0.501 * qparams.scale
        assert qparams.range[1] <= observed_high + 0.501 * qparams.scale


@pytest.mark.parametrize("estimator", list(RangeEstimator))
def test_degenerate_histograms(estimator: RangeEstimator) -> None:
    assert grid_of(estimator, torch.zeros(9), 8) == QParams(1.0, 0, 8)
    for value in (3.0, -3.0, 1e-3, 1e6):
        qparams = grid_of(estimator, torch.full((9,), value), 8)
        x_hat = float(fake_quantize(torch.tensor(value), qparams))
        assert x_hat == pytest.approx(value, rel=2 / BINS)


@pytest.mark.parametrize("estimator", list(RangeEstimator))
def test_histograms_do_not_influence_each_other(estimator: RangeEstimator) -> None:
    histograms = [Histogram.of(heavy_tailed(seed, shift=seed) * 10.0**seed) for seed in range(-2, 3) if seed != -1]
    bits = [8, 4, 10, 6]
    together = find_qparams(estimator, histograms, bits)
    for histogram, b, qparams in zip(histograms, bits, together, strict=True):
        (alone,) = find_qparams(estimator, [histogram], [b])
        assert alone.bits == qparams.bits == b
        assert math.isclose(alone.scale, qparams.scale, rel_tol=1e-6)
        assert alone.zero_point == qparams.zero_point


def test_as_many_bits_as_histograms() -> None:
    with pytest.raises(ValueError, match="zip"):
        find_qparams(RangeEstimator.MIN_MAX, [Histogram.of(torch.ones(1))], [8, 8])
