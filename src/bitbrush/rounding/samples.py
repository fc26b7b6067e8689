"""The denoiser calls that learned rounding learns from: recorded once, for all blocks together."""

from collections.abc import Sequence
from typing import Any

from bitbrush.network.family import Family
from bitbrush.timeline.cost import CallCounter
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.progress import Progress
from bitbrush.timeline.trajectory import (
    DenoiserCall,
    PromptBatch,
    carried,
    join,
    pending,
    planned_timesteps,
    split,
)

MAX_PROMPTS = 16
PROMPTS_PER_CALL = 8
EVERY = 4


def record_samples(
    pipe: Any,
    family: Family,
    batches: Sequence[PromptBatch],
    plan: SamplingPlan,
    progress: Progress,
    calls: CallCounter,
) -> list[DenoiserCall]:
    """Every fourth denoiser call on the full-precision trajectories of the first 16 prompts.

    Its two batches are staggered, so that together they cover every second call. One denoiser call per step and batch.
    """
    denoiser = getattr(pipe, family.component)
    samples = []
    small = split(join(batches)[:MAX_PROMPTS], PROMPTS_PER_CALL)
    steps = len(planned_timesteps(pipe, family.component, plan, small[0]))
    with carried(pipe, family.component, small, plan) as trajectories, progress("recording samples", steps) as advance:
        while waiting := pending(trajectories):
            for index, (trajectory, call) in enumerate(zip(trajectories, waiting, strict=True)):
                if (calls.per_batch + index * EVERY // len(small)) % EVERY == 0:
                    samples.append(call)
                trajectory.answer(call.run(denoiser))
            calls.add()
            advance()
    return samples
