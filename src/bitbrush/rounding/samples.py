"""The denoiser calls that learned rounding learns from: recorded once, for all blocks together."""

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
"""Under which progress is reported."""
RECORDING_CALLS = 1
"""Denoiser calls of each batch for every one that the pipeline makes."""


def sample_batches(batches: Sequence[PromptBatch]) -> list[PromptBatch]:
    """The first 16 prompts, eight to a denoiser call."""
    return split(join(batches)[:MAX_PROMPTS], PROMPTS_PER_CALL)


def sample_pieces(batches: Sequence[PromptBatch], ranks: Ranks) -> tuple[BatchShard, ...]:
    """This process's share of :func:`sample_batches`."""
    return own_shards(sample_batches(batches), ranks)


def is_sample(call: int, batch: int, of: int) -> bool:
    """Whether the ``call``-th denoiser call of the ``batch``-th of so many batches is kept: every fourth, staggered."""
    return (call + batch * EVERY // of) % EVERY == 0


def recorded_samples(pieces: Sequence[BatchShard], calls: int) -> int:
    """How many denoiser calls of a prompt are kept of the pieces, where the pipeline makes so many calls."""
    kept = (piece for call in range(calls) for piece in pieces if is_sample(call, piece.index, piece.batches))
    return sum(len(piece.batch.prompts) for piece in kept)


def record_samples(
    pipe: Any, family: Family, batches: Sequence[PromptBatch], plan: SamplingPlan, session: Session
) -> list[DenoiserCall]:
    """Returns every fourth denoiser call on the full-precision trajectories of the first 16 prompts, offloaded.

    Its two batches are staggered, so that together they cover every second call. One denoiser call per step and batch.
    Of several processes each records its own share of the prompts. What the pipeline changes about modules is
    not kept: blocks learn on rows drawn one by one, and perturbed attention, for one, splits its batch into parts.
    """
    denoiser = getattr(pipe, family.component)
    samples = []
    own = sample_pieces(batches, session.ranks)
    steps = len(planned_timesteps(pipe, family.component, plan, batches[0]))
    with (
        carried(pipe, family.component, [piece.batch for piece in own], plan) as trajectories,
        session.progress(RECORDING_TITLE, steps) as advance,
    ):
        for number, calls in enumerate(lockstep(trajectories)):
            for piece, trajectory, call in zip(own, trajectories, calls, strict=True):
                output = call.run(denoiser)
                if is_sample(number, piece.index, piece.batches):
                    session.offload.put((call.args, call.kwargs))
                    samples.append(replace(call, changes=NO_CHANGES))
                trajectory.answer(output)
            session.count_call()
            advance()
    return samples


def sample_shards(batches: Sequence[PromptBatch], samples: int, ranks: Ranks) -> Shards:
    """Where the samples that :func:`record_samples` gave this process stand among those of all."""
    return Shards(ranks, tuple(itertools.islice(_places(sample_pieces(batches, ranks)), samples)))


def _places(pieces: Sequence[BatchShard]) -> Iterator[SampleShard]:
    """Of all samples of the pieces, in the order in which they are recorded, without end."""
    for call in itertools.count() if pieces else ():
        for piece in pieces:
            if is_sample(call, piece.index, piece.batches):
                yield SampleShard(call * piece.batches + piece.index, piece.begin, len(piece.batch.prompts), piece.of)
