"""Ranges found at run time: of every token by itself, of every image in a convolution; what general toolkits do.

Nothing is calibrated. Deviations from those toolkits, to the method's advantage: weights are rounded as ``pcr``'s are,
where they round to nearest, and ranges are asymmetric. Layers next to the latents have 16 bits, as in all methods.
"""

from bitbrush.methods.method import Method
from bitbrush.methods.pcr import PREPARATION, WEIGHTS
from bitbrush.methods.recipe import Recipe, Rounding
from bitbrush.methods.stages.ranges import DYNAMIC_RANGES
from bitbrush.numerics.limits import RangeEstimator


def defaults(activations: int) -> Recipe:
    return Recipe(
        method="dynamic",
        activations=activations,
        rounding=Rounding.LEARNED,
        activation_range=RangeEstimator.MIN_MAX,
    )


DYNAMIC = Method("dynamic", defaults, (*PREPARATION, *WEIGHTS, DYNAMIC_RANGES))
