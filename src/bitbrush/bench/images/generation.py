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
from bitbrush.timeline.trajectory import PromptBatch, call_arguments, planned_timesteps

GENERATING = "generating"
"""The title under which progress is reported."""


class NonFiniteLatents(ValueError):
    """The latents became NaN or infinite; there are no pictures to measure."""


@dataclass(frozen=True)
class Generated:
    """``images`` (N, H, W, 3) uint8; ``steps`` (N, T, C, H, W) float32, the latents after each denoiser call.

    Pipelines that keep their latents as tokens (FLUX) have (N, T, L, C).
    """

    images: NDArray[np.uint8]
    steps: NDArray[np.float32]

    @property
    def latents(self) -> NDArray[np.float32]:
        """The final latents, (N, C, H, W), or (N, L, C) as tokens."""
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
    """Batch by batch. Raises NonFiniteLatents, naming the prompt, where the latents become NaN or infinite."""
    pipe.set_progress_bar_config(disable=True)
    with progress(GENERATING, len(batches) * denoiser_calls(pipe, plan, batches[0])) as advance:
        for batch in batches:

            def check(latents: NDArray[np.float32], step: int, batch: PromptBatch = batch) -> None:
                _require_finite(latents, batch, step)
                advance()

            yield generate_batch(pipe, batch, plan, check)


def generating_work(pipe: DiffusionPipeline, batches: Sequence[PromptBatch], plan: SamplingPlan) -> PlannedWork:
    """What :func:`generate` will report of."""
    prompts = sum(len(batch.prompts) for batch in batches)
    return PlannedWork(GENERATING, len(batches) * denoiser_calls(pipe, plan, batches[0]), prompts / len(batches))


def denoiser_calls(pipe: DiffusionPipeline, plan: SamplingPlan, batch: PromptBatch | None = None) -> int:
    """How often one generation calls the denoiser; ``batch`` where the pipeline wants more than prompts."""
    return len(planned_timesteps(pipe, denoiser_name(pipe), plan, batch))


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

    def keep(current: Tensor) -> None:
        latents.append(current.float().cpu().numpy().copy())
        after_call(latents[-1], len(latents) - 1)

    output = pipe(**call_arguments(pipe, batch, plan), **_calling_back(pipe, keep), output_type="np")
    images = np.round(np.nan_to_num(output.images) * 255).astype(np.uint8)
    return Generated(images, np.stack(latents, axis=1))


def _calling_back(pipe: DiffusionPipeline, keep: Callable[[Tensor], None]) -> dict[str, Any]:
    """The argument by which the pipeline hands ``keep`` its latents after each step: PixArt's has an older form."""

    def after_step(_: Any, __: int, ___: Any, values: dict[str, Any]) -> dict[str, Any]:
        keep(values["latents"])
        return values

    def older(_: int, __: Any, current: Tensor) -> None:
        keep(current)

    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        return {"callback_on_step_end": after_step}
    return {"callback": older, "callback_steps": 1}


def _require_finite(latents: NDArray[np.float32], batch: PromptBatch, step: int) -> None:
    for prompt, seed, own in zip(batch.prompts, batch.seeds, latents, strict=True):
        if not np.isfinite(own).all():
            raise NonFiniteLatents(
                f"the latents of prompt {prompt!r} (seed {seed}) hold NaN or infinity after denoiser call {step}; "
                "the checkpoint may need float32, or the scheduler another number of steps"
            )
