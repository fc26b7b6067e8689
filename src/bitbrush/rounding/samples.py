"""Denoiser calls that learned rounding uses as samples, recorded once for all blocks."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from bitbrush.network.family import Family
from bitbrush.rounding.shards import SampleShard, Shards
from bitbrush.session.ranks import Ranks
from bitbrush.session.session import Session
from bitbrush.timeline.module_changes import NO_CHANGES
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.shards import BatchShard, own_shards
from bitbrush.timeline.trajectory import (
    DenoiserCall,
    PromptBatch,
    carried,
    join,
    lockstep,
    planned_timesteps,
    split,
)

MAX_PROMPTS = 16
PROMPTS_PER_CALL = 8
EVERY = 4
RECORDING_TITLE = "recording samples"
"""Title of progress reports."""
RECORDING_CALLS = 1
"""Denoiser calls of each batch per denoiser call of the pipeline."""


def sample_batches(batches: Sequence[PromptBatch]) -> list[PromptBatch]:
    """Returns the first 16 prompts in batches of eight."""
    return split(join(batches)[:MAX_PROMPTS], PROMPTS_PER_CALL)


def sample_pieces(batches: Sequence[PromptBatch], ranks: Ranks) -> tuple[BatchShard, ...]:
    """Returns this process's shards of :func:`sample_batches`."""
    return own_shards(sample_batches(batches), ranks)


def is_sample(call: int, batch: int, of: int) -> bool:
    """Returns whether a denoiser call is sampled: every fourth of a batch, staggered over the batches.

    Args:
        call: Index of the denoiser call.
        batch: Index of the batch.
        of: Number of batches.
    """
    return (call + batch * EVERY // of) % EVERY == 0


def recorded_samples(pieces: Sequence[BatchShard], calls: int) -> int:
    """Counts the sampled denoiser calls, one per prompt, of the shards for a pipeline with ``calls`` denoiser calls."""
    samples = (piece for call in range(calls) for piece in pieces if is_sample(call, piece.index, piece.batches))
    return sum(len(piece.batch.prompts) for piece in samples)


def record_samples(
    pipe: Any, family: Family, batches: Sequence[PromptBatch], plan: SamplingPlan, session: Session
) -> list[DenoiserCall]:
    """Records every fourth denoiser call on the full-precision trajectories of the first 16 prompts, offloaded.

    The two batches are staggered, so that together they cover every second call. The cost is one denoiser call per step
    and batch. Each process records its own shard of the prompts. Module changes by the pipeline are not recorded,
    because blocks learn on single rows. Perturbed attention, for one, splits its batch into parts.

    Args:
        pipe: Full-precision pipeline.
        family: Facts about the denoiser's architecture.
        batches: Calibration prompts.
        plan: Sampling plan.
        session: Processes, offload, progress and costs.

    Returns:
        Sampled denoiser calls.
    """
    denoiser = getattr(pipe, family.component)
    samples = []
    pieces = sample_pieces(batches, session.ranks)
    steps = len(planned_timesteps(pipe, family.component, plan, batches[0]))
    with (
        carried(pipe, family.component, [piece.batch for piece in pieces], plan) as trajectories,
        session.progress(RECORDING_TITLE, steps) as advance,
    ):
        for number, calls in enumerate(lockstep(trajectories)):
            for piece, trajectory, call in zip(pieces, trajectories, calls, strict=True):
                output = call.run(denoiser)
                if is_sample(number, piece.index, piece.batches):
                    session.offload.put((call.args, call.kwargs))
                    samples.append(replace(call, changes=NO_CHANGES))
                trajectory.answer(output)
            session.count_call()
            advance()
    return samples


def sample_shards(batches: Sequence[PromptBatch], samples: int, ranks: Ranks) -> Shards:
    """Returns the shards of this process's samples from :func:`record_samples` among those of all processes."""
    return Shards(ranks, tuple(itertools.islice(_places(sample_pieces(batches, ranks)), samples)))


def _places(pieces: Sequence[BatchShard]) -> Iterator[SampleShard]:
    """Yields the shards of the samples of ``pieces`` in recording order, without end."""
    for call in itertools.count() if pieces else ():
        for piece in pieces:
            if is_sample(call, piece.index, piece.batches):
                yield SampleShard(call * piece.batches + piece.index, piece.begin, len(piece.batch.prompts), piece.of)
