"""Paired generation: the same prompts and the same initial noise through different pipelines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from bitbrush.network.families import family_of
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.progress import Advance, Progress, silent
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
    calls = len(planned_timesteps(pipe, family_of(pipe).component, plan))
    with progress("generating", len(batches) * calls) as advance:
        for batch in batches:
            yield _generate_batch(pipe, batch, plan, advance)


def _generate_batch(pipe: DiffusionPipeline, batch: PromptBatch, plan: SamplingPlan, advance: Advance) -> Generated:
    latents: list[NDArray[np.float32]] = []

    def record(_: Any, __: int, ___: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(values["latents"].float().cpu().numpy().copy())
        _require_finite(latents[-1], batch, len(latents) - 1)
        advance()
        return values

    output = pipe(
        list(batch.prompts),
        num_inference_steps=plan.steps,
        guidance_scale=plan.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
        output_type="np",
        callback_on_step_end=record,
    )
    return Generated(np.round(output.images * 255).astype(np.uint8), np.stack(latents, axis=1))


def _require_finite(latents: NDArray[np.float32], batch: PromptBatch, step: int) -> None:
    for prompt, seed, own in zip(batch.prompts, batch.seeds, latents, strict=True):
        if not np.isfinite(own).all():
            raise ValueError(
                f"the latents of prompt {prompt!r} (seed {seed}) hold NaN or infinity after denoiser call {step}; "
                "the checkpoint may need float32, or the scheduler another number of steps"
            )
