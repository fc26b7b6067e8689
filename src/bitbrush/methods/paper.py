"""PCR with the choices of its authors (arXiv 2311.06322), for reproduction; ``pcr`` is stronger.

Weights on the grids of their extremes, rounding learned by AdaRound over 2000 iterations a block; activations on those
of their extremes at each step; the last fifth of the steps relaxed to two bits more, which is what the paper gives
Stable Diffusion (SDXL, the first: ``relax = "0:0.2@10"``); samples from 10 prompts. What is not theirs: latents are
carried instead of restarting the pipeline for every step, and the last step is calibrated; extremes are those of all
prompts, no moving average; layers next to the latents have 8 and 16 bits, where theirs are in floating point.
"""

from dataclasses import replace

from bitbrush.methods import pcr
from bitbrush.methods.method import Method
from bitbrush.methods.recipe import FirstTokens, Recipe, Rounding
from bitbrush.numerics.limits import RangeEstimator, WeightRange

PROMPTS = 10


def defaults(activations: int) -> Recipe:
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
