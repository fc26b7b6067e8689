"""Q-Diffusion (arXiv 2302.04304): one static range per layer from evenly spaced steps, and split shortcuts.

The halves of a skip concatenation, and of the weights that read them, are quantized by themselves
(``network/skip_inputs.py``). Deviations: every step is observed, which is evenly spaced as closely as can be; weights
are rounded as ``pcr``'s are, its blocks reconstructed on evenly spaced steps as well; ranges are those of least
fourth-power error and stay so, where the paper's code goes on to learn them block by block.
"""

from bitbrush.methods.method import Method
from bitbrush.methods.recipe import Recipe, Rounding, SkipInputs
from bitbrush.methods.stages import one_range_phases, with_one_range


def defaults(activations: int) -> Recipe:
    return Recipe(method="qdiffusion", activations=activations, rounding=Rounding.LEARNED, skip_inputs=SkipInputs.SPLIT)


QDIFFUSION = Method("qdiffusion", defaults, with_one_range, one_range_phases)
