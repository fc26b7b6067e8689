"""Generation into image sets: resumable image by image, and shared by any number of processes."""

import time
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
    """Generates this process's share of the missing images.

    A batch with a missing image is generated whole, so that each image always comes from the same batch: sums over
    another batch may differ in the last bit. Latents and images may hold NaN (a NaN pixel is black), which the metrics
    detect.

    Args:
        images: Image set to fill.
        pipe: Pipeline.
        plan: Sampling plan.
        count: Number of images from the start of the set.
        with_latents: Number of images, from the start, whose latents after every denoiser call are stored.
        batch_size: Prompts per denoiser call.
        inputs: Further pipeline arguments, used in turn for the prompts.
        ranks: Processes that share the work.
        progress: Callback that receives progress reports.
    """
    starts = range(0, count, batch_size)
    batches = prompt_batches(images.prompts[:count], images.seed, batch_size, inputs=inputs)
    missing = [
        (start, batch)
        for start, batch in ranks.share(list(zip(starts, batches, strict=True)))
        if not all(images.has(start + offset) for offset in range(len(batch.prompts)))
    ]
    if not missing:
        return
    pipe.set_progress_bar_config(disable=True)
    with progress(GENERATING, len(missing) * denoiser_calls(pipe, plan, batches[0])) as advance:
        for start, batch in missing:
            times = [time.perf_counter()]

            def after_call(_: Any, __: int, times: list[float] = times) -> None:
                times.append(time.perf_counter())
                advance()

            generated = generate_batch(pipe, batch, plan, after_call)
            images.add_seconds(start, denoising_seconds(times) / len(batch.prompts))
            for offset in range(len(batch.prompts)):
                index = start + offset
                if not images.has(index):
                    steps = generated.steps[offset] if index < with_latents else None
                    images.add(index, generated.images[offset], steps)


def denoising_seconds(times: Sequence[float]) -> float:
    """Estimates the seconds of all denoiser calls of a batch, without what the first call does alone.

    The first call compiles and packs, and the time before it encodes prompts. It counts as much as the others do on
    average.

    Args:
        times: Time of the start and after each denoiser call, in seconds.
    """
    start, first, *others = times
    return (others[-1] - first) / len(others) * (len(others) + 1) if others else first - start
