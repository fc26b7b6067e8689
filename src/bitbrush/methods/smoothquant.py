"""SmoothQuant (arXiv 2211.10438): outliers move from activations into weights before both get one static range.

Deviations, both in favor of the method: rounding is learned as in ``pcr``, and ranges have the least error. The paper
rounds to nearest with min-max ranges. The exponent is the paper's 0.5.
"""

from bitbrush.methods import rtn
from bitbrush.methods.method import Method
from bitbrush.methods.recipe import Recipe, Rounding, Smoothing


def defaults(activations: int) -> Recipe:
    """Returns the default recipe for a number of activation bits."""
    return Recipe(
        method="smoothquant", activations=activations, rounding=Rounding.LEARNED, smoothing=Smoothing.SMOOTHQUANT
    )


SMOOTHQUANT = Method("smoothquant", defaults, rtn.STAGES, shares_weights=False)
