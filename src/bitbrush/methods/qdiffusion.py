"""Q-Diffusion (arXiv 2302.04304): one static range per layer from evenly spaced steps, and split shortcuts.

The two halves of a skip concatenation and of the weights that read them are quantized separately
(``network/skip_inputs.py``). Deviations: every step is observed, the closest even spacing. Weights are rounded as in
``pcr``, whose blocks are also reconstructed on evenly spaced steps. Step sizes are learned on the output of the whole
denoiser, not block by block.
"""

from bitbrush.methods import rtn
from bitbrush.methods.method import Method
from bitbrush.methods.recipe import Recipe, Rounding, SkipInputs, StepSizes


def defaults(activations: int) -> Recipe:
    """Returns the default recipe for a number of activation bits."""
    return Recipe(
        method="qdiffusion",
        activations=activations,
        rounding=Rounding.LEARNED,
        skip_inputs=SkipInputs.SPLIT,
        step_sizes=StepSizes.LEARNED,
    )


QDIFFUSION = Method("qdiffusion", defaults, rtn.STAGES, shares_weights=False)
