"""Round-to-nearest: min-max weights, one static min-max activation range per layer for all steps. The floor."""

from bitbrush.methods.method import Method
from bitbrush.methods.recipe import Recipe
from bitbrush.methods.stages import one_range_phases, with_one_range
from bitbrush.numerics.limits import RangeEstimator, WeightRange


def defaults(activations: int) -> Recipe:
    return Recipe(
        method="rtn",
        activations=activations,
        weight_range=WeightRange.MIN_MAX,
        activation_range=RangeEstimator.MIN_MAX,
    )


RTN = Method("rtn", defaults, with_one_range, one_range_phases)
