"""Simulated coverage: how often the intervals of tables and verdicts hold the true figure, by number of images."""

import numpy as np
import pytest
from numpy.typing import NDArray

from bitbrush.bench.experiments.bench.verdict import ALIKE_SHARE
from bitbrush.bench.metrics.counts import FEWEST_DECIDING, chance_of_as_many, share_interval
from bitbrush.bench.metrics.interval import Interval, bootstrap_mean, median_of
from bitbrush.bench.metrics.latent_mse import geometric_mean

RUNS = 150
TURNED = 0.04
"""Share of images that turn into other ones."""
USUAL, OTHER = (np.log(0.004), 0.9), (np.log(1.0), 0.4)
"""Mean and deviation of the logarithm of the error of an image that is kept, and of one that is not."""


def errors(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Latent errors as they are: log-normal, and a few images that turn into other ones."""
    turned = rng.random(count) < TURNED
    means, deviations = np.where(turned, OTHER[0], USUAL[0]), np.where(turned, OTHER[1], USUAL[1])
    return np.exp(rng.normal(means, deviations))


TRUE_MEAN = sum(
    share * np.exp(mean + deviation**2 / 2) for share, (mean, deviation) in ((1 - TURNED, USUAL), (TURNED, OTHER))
)
TRUE_GEOMETRIC = np.exp((1 - TURNED) * USUAL[0] + TURNED * OTHER[0])


def holds(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize("count", [6, 16, 32, 64])
def test_latent_errors_lead_with_the_figures_whose_intervals_hold(count: int) -> None:
    rng = np.random.default_rng(count)
    median = float(np.median(errors(np.random.default_rng(0), 1_000_000)))
    held = {"mean": 0, "geometric mean": 0, "median": 0}
    for _ in range(RUNS):
        sample = errors(rng, count)
        geometric = geometric_mean(sample)
        assert geometric is not None
        held["mean"] += holds(bootstrap_mean(sample, resamples=200), TRUE_MEAN)
        held["geometric mean"] += holds(geometric, TRUE_GEOMETRIC)
        held["median"] += holds(median_of(sample), median)
    shares = {name: count / RUNS for name, count in held.items()}
    assert shares["geometric mean"] >= 0.87
    assert shares["median"] >= 0.92
    assert shares["mean"] <= 0.9  # which is why it does not lead


@pytest.mark.parametrize("images", [3, 6, 16, 36, 128])
def test_a_candidate_with_87_percent_alike_is_seldom_indistinguishable(images: int) -> None:
    """Indistinguishable takes an interval that lies in 90 % and more; at three images 66 % have all pairs alike."""
    counts = np.random.default_rng(images).binomial(images, 0.87, size=2000)
    passed = [share_interval(int(count), images).low >= ALIKE_SHARE for count in counts]
    assert np.mean(passed) <= 0.025
    assert images >= FEWEST_DECIDING or not any(passed)


@pytest.mark.parametrize(("images", "rate"), [(64, 0.05), (5000, 0.01), (5000, 0.02)])
def test_equally_many_broken_images_seldom_differ(images: int, rate: float) -> None:
    """Each image is broken in the candidate alone as often as in the reference alone."""
    rng = np.random.default_rng(images)
    discordant = rng.binomial(images, rate, size=(4000, 2))
    found = [chance_of_as_many(int(one), int(other)) <= 0.025 for one, other in discordant]
    assert np.mean(found) <= 0.03
