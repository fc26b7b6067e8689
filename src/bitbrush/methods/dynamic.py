"""Activation ranges computed at run time, per token or, in a convolution, per image, as general toolkits do.

Nothing is calibrated. Deviations from those toolkits favor the method: weights are rounded as in ``pcr`` instead of to
nearest, and ranges are asymmetric. Layers next to the latents have 16 bits, as in all methods.
"""

from bitbrush.methods.method import Method
from bitbrush.methods.pcr import PREPARATION, WEIGHTS
from bitbrush.methods.recipe import Recipe, Rounding
from bitbrush.methods.stages.ranges import DYNAMIC_RANGES
from bitbrush.numerics.limits import RangeEstimator


def defaults(activations: int) -> Recipe:
    """Returns the default recipe for a number of activation bits."""
    return Recipe(
        method="dynamic",
        activations=activations,
        rounding=Rounding.LEARNED,
        activation_range=RangeEstimator.MIN_MAX,
    )


DYNAMIC = Method("dynamic", defaults, (*PREPARATION, *WEIGHTS, DYNAMIC_RANGES))
