"""Round-to-nearest: min-max weights, one static min-max activation range per layer for all steps. The floor."""

from bitbrush.calibration.ranges import static_schedules
from bitbrush.methods.method import Job, Method, Outcome
from bitbrush.methods.recipe import Recipe
from bitbrush.methods.stages import observe_full_precision, outcome
from bitbrush.numerics.ranges import RangeEstimator
from bitbrush.numerics.weights import WeightRange
from bitbrush.rounding.nearest import round_all_to_nearest


def run(job: Job) -> Outcome:
    if job.recipe.relax:
        raise ValueError(f"relax is {job.recipe.relax}, but rtn has one range for all steps; use pcr or one-shot")
    rounded = round_all_to_nearest(job.denoiser, job.calibration.layers, job.recipe.weight_range)
    observations = observe_full_precision(job)
    return outcome(job, rounded, static_schedules(job.calibration, observations))


RTN = Method(
    "rtn", Recipe(method="rtn", weight_range=WeightRange.MIN_MAX, activation_range=RangeEstimator.MIN_MAX), run
)
