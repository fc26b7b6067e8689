"""One range per timestep, all from one pass of the full-precision model: the baseline for progressive calibration."""

from bitbrush.methods.method import Method
from bitbrush.methods.pcr import PREPARATION, WEIGHTS
from bitbrush.methods.recipe import Recipe
from bitbrush.methods.stages.ranges import OBSERVE, RANGES_BY_STEP


def defaults(activations: int) -> Recipe:
    """Returns the default recipe for a number of activation bits; weights are rounded to nearest."""
    return Recipe(method="one-shot", activations=activations)


ONE_SHOT = Method("one-shot", defaults, (*PREPARATION, *WEIGHTS, OBSERVE, RANGES_BY_STEP))
