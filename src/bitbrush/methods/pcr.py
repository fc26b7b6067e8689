"""PCR: Progressive Calibration and activation Relaxing, arXiv 2311.06322.

Weights first, rounding learned on full-precision trajectories; then activation ranges step by step, each calibrated on
what the already quantized steps produced; the steps of the relaxed interval get more bits. The deviations from the
published procedure are listed where they are made: ``calibration/ranges.py`` and ``rounding/``.
"""

from bitbrush.calibration.ranges import CALIBRATING, PROGRESSIVE_CALLS, calibrate_progressively
from bitbrush.methods.allocation import with_measured_bits
from bitbrush.methods.method import Job, Method, Outcome, PlannedPhase
from bitbrush.methods.recipe import Recipe, Rounding
from bitbrush.methods.stages import early_phases, outcome, rounded_weights, rounding_phases, with_weights
from bitbrush.methods.step_sizes import require_observed_step_sizes
from bitbrush.numerics.affine import MAX_BITS
from bitbrush.timeline.plan import Relaxation
from bitbrush.timeline.trajectory import carried

PROGRESSIVE = "progressive_calibration"


def run(job: Job) -> Outcome:
    require_observed_step_sizes(job)
    job = with_measured_bits(job)
    rounded = rounded_weights(job)
    denoiser = with_weights(job.denoiser, rounded)
    with (
        job.costs.phase(PROGRESSIVE) as calls,
        carried(job.pipe, job.family.component, job.own, job.recipe.plan) as trajectories,
    ):
        schedules = calibrate_progressively(
            denoiser,
            job.calibration,
            trajectories,
            job.progress,
            calls,
            job.journal,
            job.ranks,
        )
    return outcome(job, rounded, schedules)


def phases(job: Job) -> tuple[PlannedPhase, ...]:
    require_observed_step_sizes(job)
    progressive = PlannedPhase(PROGRESSIVE, job.own, PROGRESSIVE_CALLS, on_rounded_weights=True, title=CALIBRATING)
    return (*early_phases(job), *rounding_phases(job), progressive)


def defaults(activations: int) -> Recipe:
    """The last fifth of the steps gets two bits more: at 8 bits what the paper gives Stable Diffusion."""
    relax = Relaxation(0.8, 1.0, activations + 2) if activations + 2 <= MAX_BITS else None
    return Recipe(method="pcr", activations=activations, relax=relax, rounding=Rounding.LEARNED)


PCR = Method("pcr", defaults, run, phases)
