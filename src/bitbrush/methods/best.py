"""The best combination found: PCR's stages, with bits of layers and steps by measured sensitivity.

At the averages of ``pcr`` with the same keys: as many weight bits, and its relaxed fifth's two bits more given out over
all steps and layers. Where activations have fewer than 8 bits, layers have branches of low rank, whose weights count in
the average. docs/methods.md tells of the measurement, of the branches and what they are worth.
"""

from bitbrush.calibration.relaxing import MeasuredRelaxation
from bitbrush.methods import pcr
from bitbrush.methods.method import Method
from bitbrush.methods.recipe import DEFAULT_ACTIVATION_BITS, FirstTokens, Recipe, Rounding, WeightAllocation
from bitbrush.numerics.limits import MAX_BITS

RELAXED = 0.4
"""Bits on average that pcr's relaxing adds: two in a fifth of the steps."""
RANK = 16
"""Of the branches where activations have fewer than 8 bits: with 8 their errors are the lesser part."""


def defaults(activations: int) -> Recipe:
    return Recipe(
        method="best",
        activations=activations,
        relax=MeasuredRelaxation(min(activations + RELAXED, float(MAX_BITS))),
        weight_allocation=WeightAllocation.MEASURED,
        low_rank=RANK if activations < DEFAULT_ACTIVATION_BITS else None,
        rounding=Rounding.LEARNED,
        first_token=FirstTokens.AUTO,
    )


BEST = Method("best", defaults, pcr.STAGES)
