"""Best known combination: PCR's stages, with bits of layers and steps allocated by measured sensitivity.

The averages equal those of ``pcr`` with the same keys. Weight bits are the same on average. The two extra bits of pcr's
relaxed fifth are distributed over all steps and layers. If activations have fewer than 8 bits, layers get low-rank
branches, whose weights count in the average. docs/methods.md describes the measurement, the branches and their gain.
"""

from bitbrush.calibration.relaxing import MeasuredRelaxation
from bitbrush.methods import pcr
from bitbrush.methods.method import Method
from bitbrush.methods.recipe import DEFAULT_ACTIVATION_BITS, FirstTokens, Recipe, Rounding, WeightAllocation
from bitbrush.numerics.limits import MAX_BITS

RELAXED = 0.4
"""Average bits that pcr's relaxing adds: two in a fifth of the steps."""
RANK = 16
"""Rank of the branches below 8 activation bits; at 8 bits activation errors are the smaller part."""


def defaults(activations: int) -> Recipe:
    """Returns the default recipe for a number of activation bits."""
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
