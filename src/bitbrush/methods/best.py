"""The best combination found: PCR's stages, with bits of layers and steps by measured sensitivity.

At the averages of ``pcr`` with the same keys: as many weight bits, and its relaxed fifth's two bits more given out over
all steps and layers. docs/methods.md tells of the measurement and what it is worth.
"""

from bitbrush.methods import pcr
from bitbrush.methods.method import Method
from bitbrush.methods.recipe import Recipe, Rounding, WeightAllocation
from bitbrush.numerics.affine import MAX_BITS
from bitbrush.timeline.plan import MeasuredRelaxation

RELAXED = 0.4
"""Bits on average that pcr's relaxing adds: two in a fifth of the steps."""


def defaults(activations: int) -> Recipe:
    return Recipe(
        method="best",
        activations=activations,
        relax=MeasuredRelaxation(min(activations + RELAXED, float(MAX_BITS))),
        weight_allocation=WeightAllocation.MEASURED,
        rounding=Rounding.LEARNED,
    )


BEST = Method("best", defaults, pcr.run, pcr.phases)
