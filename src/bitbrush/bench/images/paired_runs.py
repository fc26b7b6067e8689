"""Paired metrics of two runs on the same prompts and the same initial noise."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.images.generation import Generated
from bitbrush.bench.metrics.image_mse import image_mse
from bitbrush.bench.metrics.latent_mse import latent_mse
from bitbrush.bench.metrics.paired import IMAGE_MSE, LATENT_MSE, PSNR, SSIM
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.bench.metrics.ssim import ssim


def paired_metrics(reference: Generated, candidate: Generated) -> Mapping[str, NDArray[np.float64]]:
    """Returns every paired metric by name and unit, one value per pair, (N,)."""
    return {
        PSNR: psnr(reference.images, candidate.images),
        SSIM: ssim(reference.images, candidate.images),
        IMAGE_MSE: image_mse(reference.images, candidate.images),
        LATENT_MSE: latent_mse(reference.latents, candidate.latents),
    }


def latent_mse_by_step(reference: Generated, candidate: Generated) -> NDArray[np.float64]:
    """Computes the latent MSE of each pair after each denoiser call, (N, T)."""
    calls = range(reference.steps.shape[1])
    return np.stack([latent_mse(reference.steps[:, t], candidate.steps[:, t]) for t in calls], axis=1)
