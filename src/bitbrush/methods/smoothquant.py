"""SmoothQuant (arXiv 2211.10438): outliers move from activations into weights before both get one static range.

Smoothed are the inputs of transformer blocks that a norm or a linear layer makes; a convolution behind a SiLU has
nothing to take the scale on, and stays as it is. Deviations: rounding is learned as ``pcr``'s is and ranges are those
of least error, where the paper rounds to nearest on the extremes; both to its advantage. ``alpha`` is the paper's 0.5.
"""

import copy
from dataclasses import replace

from bitbrush.calibration.channel_extremes import EXTREMES_CALLS, observe_channel_extremes
from bitbrush.methods.method import Job, Method, PlannedPhase
from bitbrush.methods.recipe import Recipe, Rounding
from bitbrush.methods.stages import one_range_phases, require_one_range, with_one_range
from bitbrush.network.held import twin
from bitbrush.network.smoothing import smooth_, smoothable_inputs
from bitbrush.timeline.trajectory import carried

ALPHA = 0.5
SMOOTHING = "smoothing"


def smoothed(job: Job) -> Job:
    """The job with a pipeline that computes the same, its denoiser's inputs smoothed.

    Raises ValueError for a denoiser that has no inputs to smooth.
    """
    require_one_range(job)
    inputs = smoothable_inputs(job.denoiser, job.family)
    if not inputs:
        raise ValueError(
            f"method is smoothquant, but nothing in this {type(job.denoiser).__name__} can take on the scale of an "
            "input: the transformer blocks of U-Nets can; use ptq4dm or pcr"
        )
    names = [one.readers[0] for one in inputs]
    with (
        job.costs.phase(SMOOTHING) as calls,
        carried(job.pipe, job.family.component, job.own, job.recipe.plan) as trajectories,
    ):
        extremes = observe_channel_extremes(job.denoiser, names, trajectories, job.progress, calls, ranks=job.ranks)
    pipe, denoiser = copy.copy(job.pipe), twin(job.denoiser)
    smooth_(denoiser, inputs, extremes, alpha=ALPHA)
    setattr(pipe, job.family.component, denoiser)
    return replace(job, pipe=pipe)


def phases(job: Job) -> tuple[PlannedPhase, ...]:
    return (PlannedPhase(SMOOTHING, job.own, EXTREMES_CALLS), *one_range_phases(job))


def defaults(activations: int) -> Recipe:
    return Recipe(method="smoothquant", activations=activations, rounding=Rounding.LEARNED)


SMOOTHQUANT = Method("smoothquant", defaults, with_one_range, phases, prepare=smoothed)
