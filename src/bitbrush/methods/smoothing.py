"""Equivalent scaling: a denoiser that computes the same, its inputs and weights easier to quantize.

Smoothed are the inputs of transformer blocks that a norm or a linear layer makes; a convolution behind a SiLU has
nothing to take the scale on, and stays as it is.
"""

import copy
from dataclasses import replace

from torch import Tensor

from bitbrush.calibration.channels import CHANNEL_CALLS, CHANNELS_TITLE, observe_channels
from bitbrush.methods.method import Job, PlannedPhase
from bitbrush.methods.recipe import Smoothing
from bitbrush.network.held import twin
from bitbrush.network.smoothing import channel_scale, reader_weight, smooth_, smoothable_inputs
from bitbrush.timeline.trajectory import carried

ALPHA = 0.5
"""SmoothQuant's exponent."""
SMOOTHING = "smoothing"


def smoothing_phases(job: Job) -> tuple[PlannedPhase, ...]:
    """What :func:`smoothed` will do."""
    return () if _unwanted(job) else (PlannedPhase(SMOOTHING, job.own, CHANNEL_CALLS, title=CHANNELS_TITLE),)


def smoothed(job: Job) -> Job:
    """The job with a pipeline that computes the same, its denoiser's inputs smoothed; itself where none are to be.

    Not for a job whose weights are those of an artifact already. Raises ValueError for a denoiser that has no inputs to
    smooth.
    """
    if _unwanted(job):
        return job
    inputs = smoothable_inputs(job.denoiser, job.family)
    if not inputs:
        raise ValueError(
            f"smoothing is {job.recipe.smoothing}, but nothing in this {type(job.denoiser).__name__} can take on the "
            "scale of an input: the transformer blocks of U-Nets can; choose none"
        )
    extremes = _observed(job, [one.readers[0] for one in inputs])
    scales = {
        one.readers[0]: channel_scale(reader_weight(job.denoiser, one), extremes[one.readers[0]], ALPHA)
        for one in inputs
    }
    pipe, denoiser = copy.copy(job.pipe), twin(job.denoiser)
    smooth_(denoiser, inputs, scales)
    setattr(pipe, job.family.component, denoiser)
    return replace(job, pipe=pipe)


def _unwanted(job: Job) -> bool:
    return job.recipe.smoothing is Smoothing.NONE


def _observed(job: Job, names: list[str]) -> dict[str, Tensor]:
    with (
        job.costs.phase(SMOOTHING) as calls,
        carried(job.pipe, job.family.component, job.own, job.recipe.plan) as trajectories,
    ):
        return observe_channels(job.denoiser, names, trajectories, job.progress, calls, ranks=job.ranks)
