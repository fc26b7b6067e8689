"""The denoiser calls that learned rounding learns from: recorded once, for all blocks together."""

from collections.abc import Sequence
from typing import Any

from bitbrush.network.family import Family
from bitbrush.timeline.cost import CallCounter
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.progress import Progress
from bitbrush.timeline.spool import IN_MEMORY, Spool
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
RECORDING_CALLS = 1
"""Denoiser calls of each batch for every one that the pipeline makes."""


def sample_batches(batches: Sequence[PromptBatch]) -> list[PromptBatch]:
    """The first 16 prompts, eight to a denoiser call."""
    return split(join(batches)[:MAX_PROMPTS], PROMPTS_PER_CALL)


def is_sample(call: int, batch: int, of: int) -> bool:
    """Whether the ``call``-th denoiser call of the ``batch``-th of so many batches is kept: every fourth, staggered."""
    return (call + batch * EVERY // of) % EVERY == 0


def record_samples(
    pipe: Any,
    family: Family,
    batches: Sequence[PromptBatch],
    plan: SamplingPlan,
    progress: Progress,
    calls: CallCounter,
    spool: Spool = IN_MEMORY,
) -> list[DenoiserCall]:
    """Every fourth denoiser call on the full-precision trajectories of the first 16 prompts, put away by ``spool``.

    Its two batches are staggered, so that together they cover every second call. One denoiser call per step and batch.
    """
    denoiser = getattr(pipe, family.component)
    samples = []
    small = sample_batches(batches)
    steps = len(planned_timesteps(pipe, family.component, plan, small[0]))
    with carried(pipe, family.component, small, plan) as trajectories, progress("recording samples", steps) as advance:
        while waiting := pending(trajectories):
            for index, (trajectory, call) in enumerate(zip(trajectories, waiting, strict=True)):
                output = call.run(denoiser)
                if is_sample(calls.per_batch, index, len(small)):
                    spool.put_away((call.args, call.kwargs))
                    samples.append(call)
                trajectory.answer(output)
            calls.add()
            advance()
    return samples
