"""Paired generation: the pipeline's own pictures, from noise that depends on seed and prompt alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from bitbrush.bench.images.generation import generate
from bitbrush.bench.images.paired_runs import latent_mse_by_step, paired_metrics
from bitbrush.bench.metrics.paired import LATENT_MSE, PSNR
from bitbrush.session.progress import Advance
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import prompt_batches

PROMPTS = ("a red cat", "a dog", "a dog", "a tree / 100 %")
PLAN = SamplingPlan(steps=2)


def test_is_what_the_pipeline_makes(tiny_pipe: StableDiffusionPipeline) -> None:
    (batch,) = prompt_batches(PROMPTS, 3, 4)
    generated = generate(tiny_pipe, [batch], PLAN)
    own = tiny_pipe(
        list(PROMPTS),
        num_inference_steps=2,
        guidance_scale=7.5,
        generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
        output_type="np",
    ).images
    np.testing.assert_array_equal(generated.images, np.round(own * 255).astype(np.uint8))
    assert generated.steps.shape[:2] == (4, 3)  # PNDM calls the denoiser once more than it has steps


def test_batches_and_order_do_not_matter(tiny_pipe: StableDiffusionPipeline) -> None:
    together = generate(tiny_pipe, prompt_batches(PROMPTS, 3, 4), PLAN)
    alone = generate(tiny_pipe, prompt_batches(PROMPTS[::-1], 3, 1), PLAN)
    assert np.abs(together.latents[[0, 3]] - alone.latents[[3, 0]]).max() < 1e-4
    # The two equal prompts have noise of their own, the first the first.
    assert np.abs(together.latents[1:3] - alone.latents[1:3]).max() < 1e-4
    assert np.abs(together.latents[1] - together.latents[2]).max() > 0.1


def test_reports_every_denoiser_call(tiny_pipe: StableDiffusionPipeline) -> None:
    seen: list[int] = []

    @contextmanager
    def progress(phase: str, total: int) -> Iterator[Advance]:
        count = iter(range(total))
        yield lambda: seen.append(next(count))
        assert phase == "generating"
        assert len(seen) == total == 2 * 3

    generate(tiny_pipe, prompt_batches(PROMPTS, 3, 2), PLAN, progress=progress)


def test_paired_metrics_of_a_run_with_itself_and_another(tiny_pipe: StableDiffusionPipeline) -> None:
    first, second = (generate(tiny_pipe, prompt_batches(PROMPTS, seed, 4), PLAN) for seed in (3, 4))
    same, other = paired_metrics(first, first), paired_metrics(first, second)
    assert (same[PSNR] == 100).all()
    assert (same[LATENT_MSE] == 0).all()
    assert (other[PSNR] < 60).all()
    by_step = latent_mse_by_step(first, second)
    assert by_step.shape == (4, 3)
    np.testing.assert_array_equal(by_step[:, -1], other[LATENT_MSE])
