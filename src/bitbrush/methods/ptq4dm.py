"""PTQ4DM (arXiv 2211.15736): one static range per layer, from steps drawn by a normal distribution skewed towards x0.

Deviations, all of them to its advantage: weights are rounded as ``pcr``'s are, by block reconstruction, where the paper
rounds to nearest; every calibration prompt is observed at each drawn step instead of at one; ranges are those of least
fourth-power error, ``mse`` being the paper's.
"""

from bitbrush.calibration.ranges import static_schedules
from bitbrush.calibration.timestep_sampling import skewed_normal_draws
from bitbrush.methods.allocation import with_measured_bits
from bitbrush.methods.method import Job, Method, Outcome, PlannedPhase
from bitbrush.methods.recipe import Recipe, Rounding
from bitbrush.methods.stages import (
    observe_full_precision,
    observing_phases,
    outcome,
    require_one_range,
    rounded_weights,
)


def run(job: Job) -> Outcome:
    require_one_range(job)
    job = with_measured_bits(job)
    rounded = rounded_weights(job)
    observations = observe_full_precision(job)
    counts = skewed_normal_draws(tuple(observations), seed=job.recipe.seed)
    return outcome(job, rounded, static_schedules(job.calibration, observations, counts))


def phases(job: Job) -> tuple[PlannedPhase, ...]:
    require_one_range(job)
    return observing_phases(job)


def defaults(activations: int) -> Recipe:
    return Recipe(method="ptq4dm", activations=activations, rounding=Rounding.LEARNED)


PTQ4DM = Method("ptq4dm", defaults, run, phases)
