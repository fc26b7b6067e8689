"""Which steps matter: each denoising step is disturbed alone, and the pictures that follow are compared.

The perturbation analysis of PCR (arXiv 2311.06322, section 3.3), from which it takes which end to relax.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from bitbrush.bench.experiments.sensitivity.disturbance import Disturbance, disturbed_pictures
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

ANOTHER_PICTURE = 30.0
"""In dB: pairs farther apart do not show the same picture, as those of two seeds do not (about 20)."""
END_SHARE = 0.2
"""The share of the steps at either end that a recommendation weighs: the paper's tau."""


@dataclass(frozen=True)
class StepSensitivity:
    """What disturbing one denoiser call alone does to the pictures; ``match``: the change of their CLIP score."""

    step: int
    timestep: float
    psnr_by_image: tuple[float, ...]
    psnr: Interval
    image_mse: Interval
    match: Interval
    clip_by_image: tuple[float, ...]


@dataclass(frozen=True)
class Recommendation:
    """The interval to relax, as ``--relax`` takes it before the bits; None where neither end stands out."""

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
    """Of every ``every``-th denoiser call, in order; of pipelines that call twice in a step, each call by itself.

    Runs that ``journal`` holds are taken from it, the others go into it; the result is the same.
    """
    require_inputs(pipe, batches[0].inputs)
    found = disturbed_pictures(pipe, batches, plan, disturb, every=every, progress=progress, journal=journal)
    texts = clip.text_features([prompt for batch in batches for prompt in batch.prompts])
    matching = clip_score(clip.features(found.undisturbed), texts)
    return [
        _sensitivity(step, found.timesteps[step], found.undisturbed, images, texts, matching, clip)
        for step, images in found.disturbed.items()
    ]


def recommend(sensitivities: Sequence[StepSensitivity]) -> Recommendation:
    """The end whose steps cost the usual picture more: the median over pictures of the difference in mean PSNR.

    Not the mean of errors, which the few pictures make that turn into another one; how many do so is told.
    """
    count = max(1, round(END_SHARE * len(sensitivities)))
    first, last = (_psnr(end) for end in (sensitivities[:count], sensitivities[-count:]))
    median, low, high = median_interval(first.mean(0) - last.mean(0))
    turned = [f"{(end.min(0) < ANOTHER_PICTURE).sum()} of {end.shape[1]}" for end in (first, last)]
    match = [np.mean([one.match.mean for one in end]) for end in (sensitivities[:count], sensitivities[-count:])]
    if first.shape[1] < FEWEST_DECIDING:
        few = f"{first.shape[1]} prompts are too few to tell; {FEWEST_DECIDING} or more bound a median"
        return Recommendation(None, few)
    told = (
        f"disturbing a step of the last fifth (x0) costs the usual picture {median:.1f} dB ({low:.1f} to {high:.1f}) "
        f"more than one of the first fifth (xT); pictures below {ANOTHER_PICTURE:g} dB: {turned[0]} by the first "
        f"fifth, {turned[1]} by the last; change of the CLIP score: {match[0]:+.2f} and {match[1]:+.2f}"
    )
    if low <= 0 <= high:
        return Recommendation(None, f"neither end stands out: {told}")
    return Recommendation("0.8:1" if median > 0 else "0:0.2", told)


def _psnr(end: Sequence[StepSensitivity]) -> NDArray[np.float64]:
    """(steps, pictures)."""
    return np.array([one.psnr_by_image for one in end])


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
