"""Ranges found at run time: of every token by itself, of every image in a convolution; what general toolkits do.

Nothing is calibrated. Deviations from those toolkits, to the method's advantage: weights are rounded as ``pcr``'s are,
where they round to nearest, and ranges are asymmetric. Layers next to the latents have 16 bits, as in all methods.
"""

from bitbrush.methods.allocation import with_measured_bits
from bitbrush.methods.method import Job, Method, Outcome, PlannedPhase
from bitbrush.methods.recipe import Recipe, Rounding
from bitbrush.methods.stages import early_phases, outcome, rounded_weights, rounding_phases
from bitbrush.methods.step_sizes import require_observed_step_sizes
from bitbrush.network.layers import EDGE_ACTIVATION_BITS
from bitbrush.numerics.ranges import RangeEstimator
from bitbrush.timeline.schedule import DynamicRanges


def run(job: Job) -> Outcome:
    _require_no_calibration(job)
    job = with_measured_bits(job)
    bits = {spec.name: EDGE_ACTIVATION_BITS if spec.edge else job.recipe.activations for spec in job.calibration.layers}
    return outcome(job, rounded_weights(job), {name: DynamicRanges(own) for name, own in bits.items()})


def phases(job: Job) -> tuple[PlannedPhase, ...]:
    _require_no_calibration(job)
    return *early_phases(job), *rounding_phases(job)


def _require_no_calibration(job: Job) -> None:
    """Raises ValueError where keys ask for what ranges found at run time cannot have."""
    recipe = job.recipe
    require_observed_step_sizes(job)
    if recipe.relax:
        raise ValueError(f"relax is {recipe.relax}, but dynamic has the same bits at all steps; use pcr or one-shot")
    if recipe.activation_range is not RangeEstimator.MIN_MAX:
        raise ValueError(
            f"activation_range is {recipe.activation_range}, but dynamic takes the extremes of what comes; leave it at "
            f"{RangeEstimator.MIN_MAX}, or use one-shot"
        )


def defaults(activations: int) -> Recipe:
    return Recipe(
        method="dynamic",
        activations=activations,
        rounding=Rounding.LEARNED,
        activation_range=RangeEstimator.MIN_MAX,
    )


DYNAMIC = Method("dynamic", defaults, run, phases)
