"""Q-Diffusion (arXiv 2302.04304): one static range per layer from evenly spaced steps, and split shortcuts.

The halves of a skip concatenation, and of the weights that read them, are quantized by themselves
(``network/skip_inputs.py``). Deviations: every step is observed, which is evenly spaced as closely as can be; weights
are rounded as ``pcr``'s are, its blocks reconstructed on evenly spaced steps as well; step sizes are learned on the
output of the whole denoiser, not block by block.
"""

from bitbrush.methods import rtn
from bitbrush.methods.method import Method
from bitbrush.methods.recipe import Recipe, Rounding, SkipInputs, StepSizes


def defaults(activations: int) -> Recipe:
    return Recipe(
        method="qdiffusion",
        activations=activations,
        rounding=Rounding.LEARNED,
        skip_inputs=SkipInputs.SPLIT,
        step_sizes=StepSizes.LEARNED,
    )


QDIFFUSION = Method("qdiffusion", defaults, rtn.STAGES, shares_weights=False)
