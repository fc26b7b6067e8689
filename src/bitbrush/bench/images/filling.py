"""Generation into image sets: resumable picture by picture, and shared by any number of processes."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import DiffusionPipeline

from bitbrush.bench.images.generation import GENERATING, denoiser_calls, generate_batch
from bitbrush.bench.images.image_set import ImageSet
from bitbrush.session.progress import Progress
from bitbrush.session.ranks import Ranks
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import prompt_batches


def fill(
    images: ImageSet,
    pipe: DiffusionPipeline,
    plan: SamplingPlan,
    *,
    count: int,
    with_latents: int,
    batch_size: int,
    inputs: Mapping[str, Sequence[Any]],
    ranks: Ranks,
    progress: Progress,
) -> None:
    """Generates this process's share of the first ``count`` pictures that are not there yet.

    The first ``with_latents`` keep their latents after every denoiser call. A batch of which a picture is missing is
    generated whole, so that each picture always comes out of the same batch: sums over another batch may differ in
    the last bit. Latents and pictures may hold NaN (a NaN pixel is black); looking for that is the metrics' business.
    """
    starts = range(0, count, batch_size)
    batches = prompt_batches(images.prompts[:count], images.seed, batch_size, inputs=inputs)
    mine = [
        (start, batch)
        for start, batch in ranks.share(list(zip(starts, batches, strict=True)))
        if not all(images.has(start + offset) for offset in range(len(batch.prompts)))
    ]
    if not mine:
        return
    pipe.set_progress_bar_config(disable=True)
    with progress(GENERATING, len(mine) * denoiser_calls(pipe, plan, batches[0])) as advance:
        for start, batch in mine:
            made = generate_batch(pipe, batch, plan, lambda _, __: advance())
            for offset in range(len(batch.prompts)):
                index = start + offset
                if not images.has(index):
                    steps = made.steps[offset] if index < with_latents else None
                    images.add(index, made.images[offset], steps)
