"""PCR: Progressive Calibration and activation Relaxing, arXiv 2311.06322.

Weights first, rounding learned on full-precision trajectories; then activation ranges step by step, each calibrated on
what the already quantized steps produced (``calibration/progressive.py``); the steps of the relaxed interval get more
bits (``calibration/relaxing.py``). Deviations from the published procedure stand in the files that make them; ``paper``
has its authors' choices.
"""

from bitbrush.calibration.relaxing import Relaxation
from bitbrush.methods.method import Method
from bitbrush.methods.recipe import FirstTokens, Recipe, Rounding
from bitbrush.methods.stages.allocate_bits import ALLOCATE_BITS
from bitbrush.methods.stages.branches import ADD_BRANCHES
from bitbrush.methods.stages.calibrate_progressively import CALIBRATE_PROGRESSIVELY
from bitbrush.methods.stages.first_token import KNOW_FIRST_TOKEN, MEASURE_START_TOKEN
from bitbrush.methods.stages.round_weights import RECORD_TRAJECTORIES, ROUND_WEIGHTS
from bitbrush.methods.stages.smooth import SMOOTH
from bitbrush.methods.stages.split_skips import SPLIT_SKIPS
from bitbrush.numerics.limits import MAX_BITS

PREPARATION = (MEASURE_START_TOKEN, SPLIT_SKIPS, ADD_BRANCHES, SMOOTH, ALLOCATE_BITS)
"""What may be done to the network, and which bits it gets, before anything is quantized."""
WEIGHTS = (RECORD_TRAJECTORIES, ROUND_WEIGHTS, KNOW_FIRST_TOKEN)
STAGES = (*PREPARATION, *WEIGHTS, CALIBRATE_PROGRESSIVELY)


def defaults(activations: int) -> Recipe:
    """The last fifth of the steps gets two bits more: at 8 bits what the paper gives Stable Diffusion."""
    relax = Relaxation(0.8, 1.0, activations + 2) if activations + 2 <= MAX_BITS else None
    return Recipe(
        method="pcr",
        activations=activations,
        relax=relax,
        rounding=Rounding.LEARNED,
        first_token=FirstTokens.AUTO,
    )


PCR = Method("pcr", defaults, STAGES)
