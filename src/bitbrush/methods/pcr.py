"""PCR: Progressive Calibration and activation Relaxing, arXiv 2311.06322.

Weights come first; their rounding is learned on full-precision trajectories. Activation ranges follow step by step,
each calibrated on the output of the already quantized steps (``calibration/progressive.py``). Steps of the relaxed
interval get more bits (``calibration/relaxing.py``). The files that deviate from the published procedure state the
deviations; ``paper`` has the authors' choices.
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
"""Stages that change the network or allocate bits before anything is quantized."""
WEIGHTS = (RECORD_TRAJECTORIES, ROUND_WEIGHTS, KNOW_FIRST_TOKEN)
STAGES = (*PREPARATION, *WEIGHTS, CALIBRATE_PROGRESSIVELY)


def defaults(activations: int) -> Recipe:
    """Returns the default recipe; the last fifth of the steps gets two more bits, at 8 bits as in the paper for SD."""
    relax = Relaxation(0.8, 1.0, activations + 2) if activations + 2 <= MAX_BITS else None
    return Recipe(
        method="pcr",
        activations=activations,
        relax=relax,
        rounding=Rounding.LEARNED,
        first_token=FirstTokens.AUTO,
    )


PCR = Method("pcr", defaults, STAGES)
