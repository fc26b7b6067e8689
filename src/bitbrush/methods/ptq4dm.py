"""PTQ4DM (arXiv 2211.15736): one static range per layer, from steps drawn by a normal distribution skewed towards x0.

Deviations, all of them to its advantage: weights are rounded as ``pcr``'s are, by block reconstruction, where the paper
rounds to nearest; every calibration prompt is observed at each drawn step instead of at one; ranges are those of least
fourth-power error, ``mse`` being the paper's.
"""

from functools import partial

from bitbrush.calibration.timestep_sampling import skewed_normal_draws
from bitbrush.methods.method import Job, Method, Outcome
from bitbrush.methods.recipe import Recipe, Rounding
from bitbrush.methods.stages import one_range_phases, with_one_range


def run(job: Job) -> Outcome:
    return with_one_range(job, partial(skewed_normal_draws, seed=job.recipe.seed))


def defaults(activations: int) -> Recipe:
    return Recipe(method="ptq4dm", activations=activations, rounding=Rounding.LEARNED)


PTQ4DM = Method("ptq4dm", defaults, run, one_range_phases)
