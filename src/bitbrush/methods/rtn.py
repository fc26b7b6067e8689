"""Round-to-nearest: min-max weights, one static min-max activation range per layer for all steps. The floor."""

from bitbrush.calibration.ranges import static_schedules
from bitbrush.methods.allocation import with_measured_bits
from bitbrush.methods.method import Job, Method, Outcome, PlannedPhase
from bitbrush.methods.recipe import Recipe
from bitbrush.methods.stages import (
    observe_full_precision,
    observing_phases,
    outcome,
    require_one_range,
    rounded_weights,
)
from bitbrush.numerics.ranges import RangeEstimator
from bitbrush.numerics.weights import WeightRange


def run(job: Job) -> Outcome:
    require_one_range(job)
    job = with_measured_bits(job)
    rounded = rounded_weights(job)
    observations = observe_full_precision(job)
    return outcome(job, rounded, static_schedules(job.calibration, observations))


def phases(job: Job) -> tuple[PlannedPhase, ...]:
    require_one_range(job)
    return observing_phases(job)


def defaults(activations: int) -> Recipe:
    return Recipe(
        method="rtn",
        activations=activations,
        weight_range=WeightRange.MIN_MAX,
        activation_range=RangeEstimator.MIN_MAX,
    )


RTN = Method("rtn", defaults, run, phases)
