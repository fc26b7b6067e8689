"""Distances between sets of features: against SciPy and plain sums, exact zeros, intervals that hold their claim."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from bitbrush.bench.metrics.clip_score import clip_score
from bitbrush.bench.metrics.cmmd import cmmd
from bitbrush.bench.metrics.frechet import frechet_distance, frechet_interval
from bitbrush.bench.metrics.kid import kid

METRICS = (frechet_interval, kid, cmmd)


def features(count: int, width: int, seed: int, *, shift: float = 0.0, spread: float = 1.0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) / np.sqrt(width)
    return spread * rng.normal(size=(count, width)) @ mixing + shift


def scipy_frechet(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(sqrtm(s1 @ s2))
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s1 + s2 - 2 * root))


@given(st.integers(0, 1000), st.integers(2, 12), st.floats(0, 2), st.floats(0.2, 3))
def test_frechet_agrees_with_scipy(seed: int, width: int, shift: float, spread: float) -> None:
    x, y = features(80, width, seed), features(80, width, seed + 1, shift=shift, spread=spread)
    assert frechet_distance(x, y) == pytest.approx(scipy_frechet(x, y), rel=1e-6)


def test_frechet_of_known_distributions() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200_000, 2))
    y = rng.normal(size=(200_000, 2)) * [2, 1] + [3, 0]
    assert frechet_distance(x, y) == pytest.approx(3**2 + (2 - 1) ** 2, rel=0.01)


def test_frechet_takes_fewer_pictures_than_features() -> None:
    x, y = features(20, 50, 0), features(20, 50, 1)
    # In the space that both span, where the covariances have all their rank or less, nothing changes.
    basis = np.linalg.qr(np.concatenate([x, y]).T)[0]
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(x @ basis, y @ basis), rel=1e-9)
    assert frechet_distance(x, x + 1) == pytest.approx(50, rel=1e-9)


def test_frechet_is_symmetric_and_float32_features_are_enough() -> None:
    x, y = features(100, 16, 0), features(100, 16, 1, spread=1.3)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)
    assert frechet_distance(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(
        frechet_distance(x, y), rel=1e-5
    )


@pytest.mark.parametrize("metric", METRICS)
def test_identical_sets_have_exactly_no_distance(metric: type) -> None:
    x = features(40, 12, 0).astype(np.float32)
    interval = metric(x, x.copy())
    assert (interval.mean, interval.low, interval.high, interval.n) == (0, 0, 0, 40)


@pytest.mark.parametrize("metric", METRICS)
def test_order_of_the_pairs_does_not_matter(metric: type) -> None:
    x, y = features(40, 12, 0), features(40, 12, 1, shift=0.5)
    order = np.random.default_rng(0).permutation(40)
    assert metric(x[order], y[order]).mean == pytest.approx(metric(x, y).mean, rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_grows_with_the_difference_and_its_interval_separates(metric: type) -> None:
    x, noise = features(200, 8, 0), features(200, 8, 1)
    near, far = metric(x, x + 0.05 * noise), metric(x, x + 0.6 * noise + 0.5)
    assert near.low <= near.mean <= near.high < far.low <= far.mean <= far.high


def pairwise(x: NDArray[np.float64], y: NDArray[np.float64], kernel: type) -> float:
    count, total = len(x), 0.0
    for i in range(count):
        for j in range(count):
            if i != j:
                total += kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
    return total / (count * (count - 1))


def test_kid_is_its_definition() -> None:
    x, y = features(25, 7, 0), features(25, 7, 1, shift=0.2)
    assert kid(x, y).mean == pytest.approx(pairwise(x, y, lambda a, b: (a @ b / 7 + 1) ** 3), rel=1e-9)


def test_cmmd_is_its_definition() -> None:
    x, y = features(25, 7, 0), features(25, 7, 1, shift=0.2)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y)]
    expected = 1000 * pairwise(*unit, lambda a, b: np.exp(-np.sum((a - b) ** 2) / 200))
    assert cmmd(x, y).mean == pytest.approx(expected, rel=1e-6)
    assert cmmd(3 * x, y).mean == pytest.approx(cmmd(x, y).mean, rel=1e-6)


def test_kernel_blocks_do_not_show() -> None:
    """More rows than a block has, against the whole matrix at once."""
    x, y = features(700, 3, 0), features(700, 3, 1, shift=0.1)
    kernels = {(a, b): (p @ q.T / 3 + 1) ** 3 for a, p in (("x", x), ("y", y)) for b, q in (("x", x), ("y", y))}
    whole = kernels["x", "x"] + kernels["y", "y"] - kernels["x", "y"] - kernels["x", "y"].T
    np.fill_diagonal(whole, 0)
    assert kid(x, y).mean == pytest.approx(whole.sum() / (700 * 699), rel=1e-9)


def test_kernel_distances_are_unbiased() -> None:
    values = [kid(features(20, 4, 2 * seed), features(20, 4, 2 * seed + 1)).mean for seed in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)


def test_frechet_intervals_hold_the_expectation_at_their_size() -> None:
    drawn = []
    for seed in range(60):
        x = features(120, 6, 2 * seed)
        drawn.append(frechet_interval(x, 0.8 * x + features(120, 6, 2 * seed + 1, shift=0.3, spread=0.6)))
    expected = np.mean([interval.mean for interval in drawn])
    held = np.mean([interval.low <= expected <= interval.high for interval in drawn])
    assert held >= 0.85
    widths = np.mean([interval.high - interval.low for interval in drawn])
    assert widths < 3 * 2 * 1.96 * np.std([interval.mean for interval in drawn])


def test_clip_score_is_the_cosine_in_percent() -> None:
    images = np.array([[2.0, 0], [1, 1], [-1, 0]])
    texts = np.array([[1.0, 0], [3, 0], [1, 0]])
    np.testing.assert_allclose(clip_score(images, texts), [100, 100 / np.sqrt(2), 0])


@pytest.mark.parametrize("metric", METRICS)
def test_refuses_what_cannot_be_compared(metric: type) -> None:
    x = features(10, 4, 0)
    with pytest.raises(ValueError, match=r"shapes \(10, 4\) and \(9, 4\)"):
        metric(x, x[:9])
    with pytest.raises(ValueError, match="N at least 2"):
        metric(x[:1], x[:1])
    with pytest.raises(ValueError, match="must be floats"):
        metric(np.ones((5, 4), dtype=np.int64), np.ones((5, 4), dtype=np.int64))
    broken = x.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="image 3 are not finite"):
        metric(x, broken)


def test_an_embedding_of_no_length_is_named() -> None:
    x = features(5, 4, 0)
    x[2] = 0
    with pytest.raises(ValueError, match="embedding 2 is all zeros"):
        cmmd(x, features(5, 4, 1))
    with pytest.raises(ValueError, match="embedding 2"):
        clip_score(x, x)
