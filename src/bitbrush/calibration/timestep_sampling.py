"""Which denoising steps a static range is calibrated on: how often each timestep counts.

Methods with one range for all steps choose their calibration inputs from the steps of the trajectories. What they
observe here is every step of every trajectory, so a choice of steps is how many times each counts in the union.
"""

from collections import Counter
from collections.abc import Sequence

import torch

from bitbrush.timeline.schedule import nearest

DRAWS = 1024
SKEWED_MEAN = 0.4


def skewed_normal_draws(timesteps: Sequence[float], *, seed: int, draws: int = DRAWS) -> Counter[float]:
    """How often each of the descending ``timesteps`` is drawn from N(0.4 T, T / 2), T being the first, within [0, T].

    PTQ4DM's "normally distributed time-step calibration" (arXiv 2211.15736, section 3.3): a normal distribution of
    deviation T / 2 whose mean is below T / 2, so that steps near x0 count more; values beyond the ends are drawn again.
    Deviation: the paper asks for a mean of at most T / 2 and names no number, here it is 0.4 T.
    """
    generator = torch.Generator().manual_seed(seed)
    known, most = tuple(timesteps), max(timesteps)
    counts: Counter[float] = Counter()
    while (missing := draws - counts.total()) > 0:
        drawn = (SKEWED_MEAN + 0.5 * torch.randn(missing, generator=generator, dtype=torch.float64)) * most
        counts.update(known[nearest(known, t)] for t in drawn.tolist() if 0 <= t <= most)
    return counts
