"""Names of the built-in paired metrics, and their figures over all pairs."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.interval import Interval, bootstrap_mean, median_of
from bitbrush.bench.metrics.latent_mse import geometric_mean

PSNR, SSIM, IMAGE_MSE, LATENT_MSE = "PSNR (dB)", "SSIM", "image MSE", "latent MSE"
GEOMETRIC, MEDIAN = f"{LATENT_MSE}, geometric mean", f"{LATENT_MSE}, median"
PSNR_MEDIAN = f"{PSNR}, median"
HEAVY_TAILED = (
    "Latent errors lead with the geometric mean or the median: a few images that turn into other ones make the "
    "arithmetic mean, and its interval holds the true mean far less often than it says."
)
"""Sentence of every page that shows latent errors."""


def paired_figures(values: Mapping[str, NDArray[np.float64]]) -> dict[str, Interval]:
    """Computes the means of paired metrics; the latent MSE has all of :func:`latent_mse_figures`."""
    figures = {metric: bootstrap_mean(of_pairs) for metric, of_pairs in values.items() if metric != LATENT_MSE}
    return figures | (latent_mse_figures(values[LATENT_MSE]) if LATENT_MSE in values else {})


def latent_mse_figures(errors: NDArray[np.float64]) -> dict[str, Interval]:
    """Computes geometric mean, median and mean of latent errors, in this order.

    The geometric mean and the median describe the usual image. The few images that turn into different ones dominate
    the mean.

    Args:
        errors: Latent MSE of each pair, (N,).

    Returns:
        Intervals by name; without the geometric mean where an error is 0.
    """
    geometric = geometric_mean(errors)
    return {
        **({GEOMETRIC: geometric} if geometric else {}),
        MEDIAN: median_of(errors),
        LATENT_MSE: bootstrap_mean(errors),
    }
