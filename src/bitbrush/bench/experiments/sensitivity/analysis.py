"""Effect of disturbing each denoising step alone on the images.

This is the perturbation analysis of PCR (arXiv 2311.06322, section 3.3), which decides the end of the steps to relax.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from bitbrush.bench.experiments.sensitivity.disturbance import Disturbance, disturbed_images
from bitbrush.bench.metrics.clip_score import clip_score
from bitbrush.bench.metrics.counts import FEWEST_DECIDING
from bitbrush.bench.metrics.image_mse import image_mse
from bitbrush.bench.metrics.interval import Interval, bootstrap_difference, bootstrap_mean, median_interval
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.bench.networks.clip import Clip
from bitbrush.quantization.quantize import require_inputs
from bitbrush.session.journal import NO_JOURNAL, Journal
from bitbrush.session.progress import Progress, silent
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import PromptBatch

ANOTHER_IMAGE = 30.0
"""PSNR in dB below which a pair does not show the same image; pairs of two seeds have about 20."""
END_SHARE = 0.2
"""Share of the steps at either end that a recommendation compares: the paper's tau."""


@dataclass(frozen=True)
class StepSensitivity:
    """Effect of disturbing one denoiser call alone.

    Args:
        step: Index of the denoiser call.
        timestep: Its timestep.
        psnr_by_image: PSNR of each image in dB.
        psnr: Mean PSNR.
        image_mse: Mean image MSE.
        match: Mean change of the CLIP score.
        clip_by_image: CLIP score of each image.
    """

    step: int
    timestep: float
    psnr_by_image: tuple[float, ...]
    psnr: Interval
    image_mse: Interval
    match: Interval
    clip_by_image: tuple[float, ...]


@dataclass(frozen=True)
class Recommendation:
    """Interval of steps to relax, as in ``--relax`` before the bits; None where neither end stands out."""

    relax: str | None
    reason: str


def step_sensitivities(
    pipe: DiffusionPipeline,
    batches: Sequence[PromptBatch],
    plan: SamplingPlan,
    disturb: Disturbance,
    clip: Clip,
    *,
    every: int = 1,
    progress: Progress = silent,
    journal: Journal = NO_JOURNAL,
) -> list[StepSensitivity]:
    """Measures the sensitivity of every ``every``-th denoiser call.

    A pipeline that calls twice in a step has each call measured by itself. Runs in the journal are reused, others are
    added to it; the result is the same.

    Args:
        pipe: Full-precision pipeline.
        batches: Prompts.
        plan: Sampling plan.
        disturb: Disturbance of one call.
        clip: CLIP of the CLIP scores.
        every: Distance between disturbed calls.
        progress: Callback that receives progress reports.
        journal: Finished runs.

    Returns:
        Sensitivities in the order of the calls.
    """
    require_inputs(pipe, batches[0].inputs)
    runs = disturbed_images(pipe, batches, plan, disturb, every=every, progress=progress, journal=journal)
    texts = clip.text_features([prompt for batch in batches for prompt in batch.prompts])
    matching = clip_score(clip.features(runs.undisturbed), texts)
    return [
        _sensitivity(step, runs.timesteps[step], runs.undisturbed, images, texts, matching, clip)
        for step, images in runs.disturbed.items()
    ]


def recommend(sensitivities: Sequence[StepSensitivity]) -> Recommendation:
    """Recommends the end whose steps cost the usual image more.

    It compares the median over images of the difference in mean PSNR. The few images that turn into different ones
    would dominate a mean of errors; their number is part of the reason.
    """
    count = max(1, round(END_SHARE * len(sensitivities)))
    first, last = (_psnr(end) for end in (sensitivities[:count], sensitivities[-count:]))
    median, low, high = median_interval(first.mean(0) - last.mean(0))
    turned = [f"{(end.min(0) < ANOTHER_IMAGE).sum()} of {end.shape[1]}" for end in (first, last)]
    match = [np.mean([step.match.mean for step in end]) for end in (sensitivities[:count], sensitivities[-count:])]
    if first.shape[1] < FEWEST_DECIDING:
        few = f"{first.shape[1]} prompts are too few to tell; {FEWEST_DECIDING} or more bound a median"
        return Recommendation(None, few)
    reason = (
        f"disturbing a step of the last fifth (x0) costs the usual image {median:.1f} dB ({low:.1f} to {high:.1f}) "
        f"more than one of the first fifth (xT); images below {ANOTHER_IMAGE:g} dB: {turned[0]} by the first "
        f"fifth, {turned[1]} by the last; change of the CLIP score: {match[0]:+.2f} and {match[1]:+.2f}"
    )
    if low <= 0 <= high:
        return Recommendation(None, f"neither end stands out: {reason}")
    return Recommendation("0.8:1" if median > 0 else "0:0.2", reason)


def _psnr(end: Sequence[StepSensitivity]) -> NDArray[np.float64]:
    """Returns the PSNR, (steps, images)."""
    return np.array([step.psnr_by_image for step in end])


def _sensitivity(
    step: int,
    timestep: float,
    reference: NDArray[np.uint8],
    images: NDArray[np.uint8],
    texts: NDArray[np.float32],
    matching: NDArray[np.float64],
    clip: Clip,
) -> StepSensitivity:
    fidelity, scores = psnr(reference, images), clip_score(clip.features(images), texts)
    return StepSensitivity(
        step=step,
        timestep=timestep,
        psnr_by_image=tuple(fidelity.tolist()),
        psnr=bootstrap_mean(fidelity, resamples=2000),
        image_mse=bootstrap_mean(image_mse(reference, images), resamples=2000),
        match=bootstrap_difference(matching, scores, resamples=2000),
        clip_by_image=tuple(scores.tolist()),
    )
