"""Round-to-nearest, the weakest baseline: min-max weights, one static min-max activation range per layer."""

from bitbrush.methods.method import Method
from bitbrush.methods.pcr import PREPARATION, WEIGHTS
from bitbrush.methods.recipe import Recipe
from bitbrush.methods.stages.learn_step_sizes import LEARN_STEP_SIZES
from bitbrush.methods.stages.ranges import OBSERVE, static_ranges
from bitbrush.numerics.limits import RangeEstimator, WeightRange

STAGES = (*PREPARATION, *WEIGHTS, OBSERVE, static_ranges(), LEARN_STEP_SIZES)
"""Stages of every method with one range for all steps."""


def defaults(activations: int) -> Recipe:
    """Returns the default recipe for a number of activation bits."""
    return Recipe(
        method="rtn",
        activations=activations,
        weight_range=WeightRange.MIN_MAX,
        activation_range=RangeEstimator.MIN_MAX,
    )


RTN = Method("rtn", defaults, STAGES)
