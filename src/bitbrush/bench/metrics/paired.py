"""All paired metrics of two runs on the same prompts and the same initial noise."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.images.generation import Generated
from bitbrush.bench.metrics.image_mse import image_mse
from bitbrush.bench.metrics.interval import Interval, bootstrap_mean, median_interval
from bitbrush.bench.metrics.latent_mse import geometric_mean, latent_mse
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.bench.metrics.ssim import ssim

PSNR, SSIM, IMAGE_MSE, LATENT_MSE = "PSNR (dB)", "SSIM", "image MSE", "latent MSE"
GEOMETRIC, MEDIAN = f"{LATENT_MSE}, geometric mean", f"{LATENT_MSE}, median"


def paired_metrics(reference: Generated, candidate: Generated) -> Mapping[str, NDArray[np.float64]]:
    """By name, unit included, one value per pair, ``(N,)``."""
    return {
        PSNR: psnr(reference.images, candidate.images),
        SSIM: ssim(reference.images, candidate.images),
        IMAGE_MSE: image_mse(reference.images, candidate.images),
        LATENT_MSE: latent_mse(reference.latents, candidate.latents),
    }


def latent_mse_by_step(reference: Generated, candidate: Generated) -> NDArray[np.float64]:
    """How far apart the latents are after each denoiser call, ``(N, T)``."""
    calls = range(reference.steps.shape[1])
    return np.stack([latent_mse(reference.steps[:, t], candidate.steps[:, t]) for t in calls], axis=1)


def paired_figures(values: Mapping[str, NDArray[np.float64]]) -> dict[str, Interval]:
    """The means of paired metrics with their intervals; of the latent MSE all of :func:`latent_mse_figures`."""
    figures = {metric: bootstrap_mean(own) for metric, own in values.items() if metric != LATENT_MSE}
    return figures | (latent_mse_figures(values[LATENT_MSE]) if LATENT_MSE in values else {})


def latent_mse_figures(errors: NDArray[np.float64]) -> dict[str, Interval]:
    """Geometric mean, median and mean of errors `(N,)`: the usual image's first.

    The mean is that of the few images that turn into other ones. The geometric mean is left out where an error is 0.
    """
    geometric = geometric_mean(errors)
    return {
        **({GEOMETRIC: geometric} if geometric else {}),
        MEDIAN: Interval(*median_interval(errors), errors.size),
        LATENT_MSE: bootstrap_mean(errors),
    }
