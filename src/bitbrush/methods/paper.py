"""PCR with its authors' choices (arXiv 2311.06322), for reproduction; ``pcr`` is stronger.

Weight ranges are min-max; AdaRound learns the rounding over 2000 iterations per block. Activation ranges are min-max at
each step. The last fifth of the steps is relaxed to two more bits, the paper's setting for Stable Diffusion (for SDXL
the first fifth: ``relax = "0:0.2@10"``). Samples come from 10 prompts.

Deviations: latents are carried from step to step instead of restarting the pipeline for every step, and the last step
is calibrated. Extremes are taken over all prompts, without a moving average. Layers next to the latents have 8-bit
weights and 16-bit activations; the paper keeps them in floating point.
"""

from dataclasses import replace

from bitbrush.methods import pcr
from bitbrush.methods.method import Method
from bitbrush.methods.recipe import FirstTokens, Recipe, Rounding
from bitbrush.numerics.limits import RangeEstimator, WeightRange

PROMPTS = 10


def defaults(activations: int) -> Recipe:
    """Returns the default recipe for a number of activation bits."""
    return replace(
        pcr.defaults(activations),
        method="paper",
        rounding=Rounding.ADAROUND,
        weight_range=WeightRange.MIN_MAX,
        activation_range=RangeEstimator.MIN_MAX,
        first_token=FirstTokens.QUANTIZED,
        num_prompts=PROMPTS,
    )


PAPER = Method("paper", defaults, pcr.STAGES)
