"""PTQ4DM (arXiv 2211.15736): one static range per layer, from steps drawn by a normal distribution skewed towards x0.

Deviations, all in favor of the method: weights are rounded by block reconstruction as in ``pcr``, in the paper to
nearest. Every calibration prompt is observed at each drawn step instead of at one. Ranges have the least fourth-power
error; the paper uses ``mse``.
"""

from collections import Counter
from collections.abc import Sequence

from bitbrush.calibration.timestep_sampling import skewed_normal_draws
from bitbrush.methods.method import Method
from bitbrush.methods.pcr import PREPARATION, WEIGHTS
from bitbrush.methods.recipe import Recipe, Rounding
from bitbrush.methods.stages.learn_step_sizes import LEARN_STEP_SIZES
from bitbrush.methods.stages.ranges import OBSERVE, static_ranges
from bitbrush.methods.state import QuantizationState


def draws(state: QuantizationState, timesteps: Sequence[float]) -> Counter[float]:
    """Counts how often each timestep is drawn."""
    return skewed_normal_draws(timesteps, seed=state.recipe.seed)


def defaults(activations: int) -> Recipe:
    """Returns the default recipe for a number of activation bits."""
    return Recipe(method="ptq4dm", activations=activations, rounding=Rounding.LEARNED)


PTQ4DM = Method("ptq4dm", defaults, (*PREPARATION, *WEIGHTS, OBSERVE, static_ranges(draws), LEARN_STEP_SIZES))
