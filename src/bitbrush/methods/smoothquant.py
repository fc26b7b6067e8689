"""SmoothQuant (arXiv 2211.10438): outliers move from activations into weights before both get one static range.

Deviations: rounding is learned as ``pcr``'s is and ranges are those of least error, where the paper rounds to nearest
on the extremes; both to its advantage. The exponent is the paper's 0.5.
"""

from bitbrush.methods import rtn
from bitbrush.methods.method import Method
from bitbrush.methods.recipe import Recipe, Rounding, Smoothing


def defaults(activations: int) -> Recipe:
    return Recipe(
        method="smoothquant", activations=activations, rounding=Rounding.LEARNED, smoothing=Smoothing.SMOOTHQUANT
    )


SMOOTHQUANT = Method("smoothquant", defaults, rtn.STAGES, shares_weights=False)
