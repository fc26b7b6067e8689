"""Paired generation: the same prompts and the same initial noise through different pipelines."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from bitbrush.network.families import family_of
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.progress import Progress, silent
from bitbrush.timeline.trajectory import PromptBatch, planned_timesteps


@dataclass(frozen=True)
class Generated:
    """``images`` (N, H, W, 3) uint8; ``steps`` (N, T, C, H, W) float32, the latents after each denoiser call."""

    images: NDArray[np.uint8]
    steps: NDArray[np.float32]

    @property
    def latents(self) -> NDArray[np.float32]:
        """The final latents, (N, C, H, W)."""
        latents: NDArray[np.float32] = self.steps[:, -1]
        return latents


def generate(
    pipe: DiffusionPipeline, batches: Sequence[PromptBatch], plan: SamplingPlan, *, progress: Progress = silent
) -> Generated:
    """One image per prompt by the pipeline's own call, each from a CPU generator of its own."""
    parts = list(generate_each(pipe, batches, plan, progress=progress))
    return Generated(np.concatenate([part.images for part in parts]), np.concatenate([part.steps for part in parts]))


def generate_each(
    pipe: DiffusionPipeline, batches: Sequence[PromptBatch], plan: SamplingPlan, *, progress: Progress = silent
) -> Iterator[Generated]:
    """Batch by batch. Raises ValueError, naming the prompt, where the latents become NaN or infinite."""
    pipe.set_progress_bar_config(disable=True)
    with progress("generating", len(batches) * denoiser_calls(pipe, plan)) as advance:
        for batch in batches:

            def check(latents: NDArray[np.float32], step: int, batch: PromptBatch = batch) -> None:
                _require_finite(latents, batch, step)
                advance()

            yield generate_batch(pipe, batch, plan, check)


def denoiser_calls(pipe: DiffusionPipeline, plan: SamplingPlan) -> int:
    """How often one generation calls the denoiser."""
    return len(planned_timesteps(pipe, family_of(pipe).component, plan))


def generate_batch(
    pipe: DiffusionPipeline,
    batch: PromptBatch,
    plan: SamplingPlan,
    after_call: Callable[[NDArray[np.float32], int], None],
) -> Generated:
    """The pipeline's own call; ``after_call`` is given the latents after each denoiser call, and which call it was.

    NaN pixels become black ones.
    """
    latents: list[NDArray[np.float32]] = []

    def record(_: Any, __: int, ___: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(values["latents"].float().cpu().numpy().copy())
        after_call(latents[-1], len(latents) - 1)
        return values

    output = pipe(
        list(batch.prompts),
        num_inference_steps=plan.steps,
        guidance_scale=plan.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
        output_type="np",
        callback_on_step_end=record,
    )
    images = np.round(np.nan_to_num(output.images) * 255).astype(np.uint8)
    return Generated(images, np.stack(latents, axis=1))


def _require_finite(latents: NDArray[np.float32], batch: PromptBatch, step: int) -> None:
    for prompt, seed, own in zip(batch.prompts, batch.seeds, latents, strict=True):
        if not np.isfinite(own).all():
            raise ValueError(
                f"the latents of prompt {prompt!r} (seed {seed}) hold NaN or infinity after denoiser call {step}; "
                "the checkpoint may need float32, or the scheduler another number of steps"
            )
