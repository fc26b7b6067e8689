"""Comparison of a quantized pipeline with full precision, pair by pair from the same initial noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from scipy import stats

from bitbrush.bench.experiments.candidates import require_alike
from bitbrush.bench.images.generation import Generated, generate, generating_work
from bitbrush.bench.images.paired_runs import latent_mse_by_step, paired_metrics
from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.metrics.paired import paired_figures
from bitbrush.quantization.quantize import require_inputs
from bitbrush.session.progress import Progress, planned, silent
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import prompt_batches


@dataclass(frozen=True)
class Comparison:
    """Paired metrics of one prompt set.

    Args:
        candidate: Figures of the candidate.
        other_seed: Figures of full precision from other noise: the distance of two correct images of one prompt.
        latent_mse_by_step: Geometric mean over the candidate's pairs after each denoiser call, (T,); 0 where a pair
            is identical.
    """

    candidate: Mapping[str, Interval]
    other_seed: Mapping[str, Interval]
    latent_mse_by_step: NDArray[np.float64]


def compare(
    full: DiffusionPipeline,
    candidate: DiffusionPipeline,
    prompts: Mapping[str, Sequence[str]],
    plan: SamplingPlan,
    *,
    seed: int,
    batch_size: int = 16,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    progress: Progress = silent,
) -> dict[str, Comparison]:
    """Compares two pipelines on prompt sets.

    Args:
        full: Full-precision pipeline.
        candidate: Quantized pipeline.
        prompts: Prompts by name of the set.
        plan: Sampling plan.
        seed: Seed of the images; another seed is the next number.
        batch_size: Prompts per denoiser call.
        inputs: Further pipeline arguments, used in turn for the prompts.
        progress: Callback that receives progress reports.

    Returns:
        Comparisons by name of the set.

    Raises:
        ValueError: The pipelines differ in the shape of their latents.
    """
    require_alike(full, candidate)
    require_inputs(full, inputs or {})
    progress = planned(
        progress,
        lambda: [
            generating_work(full, prompt_batches(texts, seed, batch_size, inputs=inputs), plan)
            for texts in prompts.values()
            for _ in range(3)
        ],
    )
    compared = {}
    for name, texts in prompts.items():
        batches = prompt_batches(texts, seed, batch_size, inputs=inputs)
        reference = generate(full, batches, plan, progress=progress)
        elsewhere = prompt_batches(texts, seed + 1, batch_size, inputs=inputs)
        other = generate(full, elsewhere, plan, progress=progress)
        quantized = generate(candidate, batches, plan, progress=progress)
        compared[name] = Comparison(
            _intervals(reference, quantized),
            _intervals(reference, other),
            stats.gmean(latent_mse_by_step(reference, quantized), axis=0),
        )
    return compared


def _intervals(reference: Generated, other: Generated) -> dict[str, Interval]:
    return paired_figures(paired_metrics(reference, other))
