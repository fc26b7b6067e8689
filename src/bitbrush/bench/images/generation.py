"""Paired generation: the same prompts and the same initial noise through different pipelines."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from torch import Tensor

from bitbrush.network.families import denoiser_name
from bitbrush.session.progress import PlannedWork, Progress, silent
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import PromptBatch, call_arguments, generated_images, planned_timesteps

GENERATING = "generating"
"""Title of progress reports."""


class NonFiniteLatents(ValueError):
    """The latents became NaN or infinite, so there are no images to measure."""


@dataclass(frozen=True)
class Generated:
    """Images of one run.

    Args:
        images: (N, H, W, 3) uint8.
        steps: Latents after each denoiser call, (N, T, C, H, W) float32; (N, T, L, C) for latents as tokens (FLUX), and
            (N, T, C, F, H, W) for the frames F of a video.
    """

    images: NDArray[np.uint8]
    steps: NDArray[np.float32]

    @property
    def latents(self) -> NDArray[np.float32]:
        """Final latents, (N, C, H, W), or (N, L, C) as tokens."""
        latents: NDArray[np.float32] = self.steps[:, -1]
        return latents


def generate(
    pipe: DiffusionPipeline, batches: Sequence[PromptBatch], plan: SamplingPlan, *, progress: Progress = silent
) -> Generated:
    """Generates one image per prompt by the pipeline's own call, each from a CPU generator of its own.

    Raises:
        NonFiniteLatents: The latents become NaN or infinite; the message names the prompt.
    """
    parts = list(generate_each(pipe, batches, plan, progress=progress))
    return Generated(np.concatenate([part.images for part in parts]), np.concatenate([part.steps for part in parts]))


def generate_each(
    pipe: DiffusionPipeline, batches: Sequence[PromptBatch], plan: SamplingPlan, *, progress: Progress = silent
) -> Iterator[Generated]:
    """Generates images batch by batch.

    Raises:
        NonFiniteLatents: The latents become NaN or infinite; the message names the prompt.
    """
    pipe.set_progress_bar_config(disable=True)
    with progress(GENERATING, len(batches) * denoiser_calls(pipe, plan, batches[0])) as advance:
        for batch in batches:

            def check(latents: NDArray[np.float32], step: int, batch: PromptBatch = batch) -> None:
                _require_finite(latents, batch, step)
                advance()

            yield generate_batch(pipe, batch, plan, check)


def generating_work(pipe: DiffusionPipeline, batches: Sequence[PromptBatch], plan: SamplingPlan) -> PlannedWork:
    """Estimates the work that :func:`generate` reports."""
    prompts = sum(len(batch.prompts) for batch in batches)
    return PlannedWork(GENERATING, len(batches) * denoiser_calls(pipe, plan, batches[0]), prompts / len(batches))


def denoiser_calls(pipe: DiffusionPipeline, plan: SamplingPlan, batch: PromptBatch | None = None) -> int:
    """Counts the denoiser calls of one generation; ``batch`` is needed if the pipeline takes more than prompts."""
    return len(planned_timesteps(pipe, denoiser_name(pipe), plan, batch))


def generate_batch(
    pipe: DiffusionPipeline,
    batch: PromptBatch,
    plan: SamplingPlan,
    after_call: Callable[[NDArray[np.float32], int], None],
) -> Generated:
    """Generates the images of a batch by the pipeline's own call.

    Args:
        pipe: Pipeline.
        batch: Prompts.
        plan: Sampling plan.
        after_call: Callback that receives the latents after each denoiser call, and the index of the call.

    Returns:
        Images and latents; NaN pixels become black.
    """
    latents: list[NDArray[np.float32]] = []

    def record(current: Tensor) -> None:
        latents.append(current.float().cpu().numpy().copy())
        after_call(latents[-1], len(latents) - 1)

    output = pipe(**call_arguments(pipe, batch, plan), **_callback_arguments(pipe, record), output_type="np")
    images = np.round(np.nan_to_num(generated_images(output)) * 255).astype(np.uint8)
    return Generated(images, np.stack(latents, axis=1))


def _callback_arguments(pipe: DiffusionPipeline, record: Callable[[Tensor], None]) -> dict[str, Any]:
    """Returns the argument that makes the pipeline pass its latents to ``record``; PixArt's has an older form."""

    def after_step(_: Any, __: int, ___: Any, values: dict[str, Any]) -> dict[str, Any]:
        record(values["latents"])
        return values

    def older(_: int, __: Any, current: Tensor) -> None:
        record(current)

    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        return {"callback_on_step_end": after_step}
    return {"callback": older, "callback_steps": 1}


def _require_finite(latents: NDArray[np.float32], batch: PromptBatch, step: int) -> None:
    for prompt, seed, of_image in zip(batch.prompts, batch.seeds, latents, strict=True):
        if not np.isfinite(of_image).all():
            raise NonFiniteLatents(
                f"the latents of prompt {prompt!r} (seed {seed}) hold NaN or infinity after denoiser call {step}; "
                "the checkpoint may need float32, or the scheduler another number of steps"
            )
