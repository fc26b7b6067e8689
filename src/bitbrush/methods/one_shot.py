"""Ranges per timestep, all from one pass of the full-precision model: what progressive calibration must beat."""

from bitbrush.calibration.ranges import one_shot_schedules
from bitbrush.methods.allocation import with_measured_bits
from bitbrush.methods.method import Job, Method, Outcome, PlannedPhase
from bitbrush.methods.recipe import Recipe
from bitbrush.methods.stages import observe_full_precision, observing_phases, outcome, rounded_weights
from bitbrush.methods.step_sizes import require_observed_step_sizes


def run(job: Job) -> Outcome:
    require_observed_step_sizes(job)
    job = with_measured_bits(job)
    rounded = rounded_weights(job)
    observations = observe_full_precision(job)
    return outcome(job, rounded, one_shot_schedules(job.calibration, observations))


def defaults(activations: int) -> Recipe:
    return Recipe(method="one-shot", activations=activations)


def phases(job: Job) -> tuple[PlannedPhase, ...]:
    require_observed_step_sizes(job)
    return observing_phases(job)


ONE_SHOT = Method("one-shot", defaults, run, phases)
