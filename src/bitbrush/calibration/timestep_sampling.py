"""Selection of denoising steps for a static range, as a count for each timestep.

Methods with one range for all steps select their calibration inputs from the steps of the trajectories. The observation
here covers every step of every trajectory, so a selection is the count of each step in the union.
"""

from collections import Counter
from collections.abc import Sequence

import torch

from bitbrush.timeline.schedule import nearest

DRAWS = 1024
SKEWED_MEAN = 0.4


def skewed_normal_draws(timesteps: Sequence[float], *, seed: int, draws: int = DRAWS) -> Counter[float]:
    """Counts draws of the ``timesteps`` from N(0.4 T, T / 2) within [0, T], with T the largest noise level.

    Source: PTQ4DM's "normally distributed time-step calibration" (arXiv 2211.15736, section 3.3). It draws from a
    normal distribution with deviation T / 2 and a mean below T / 2, so that steps near x0 count more. Values beyond the
    ends are drawn again. Deviation: the paper asks for a mean of at most T / 2 without a number; here it is 0.4 T.

    Args:
        timesteps: Timesteps of the plan, the noisiest first. Ascending ones are one less the noise level.
        seed: Seed of the draws.
        draws: Number of draws.

    Returns:
        Count of each drawn timestep.
    """
    generator = torch.Generator().manual_seed(seed)
    ascending = timesteps[0] < timesteps[-1]
    levels = tuple(1 - t for t in timesteps) if ascending else tuple(timesteps)
    most = max(levels)
    counts: Counter[float] = Counter()
    while (missing := draws - counts.total()) > 0:
        drawn = (SKEWED_MEAN + 0.5 * torch.randn(missing, generator=generator, dtype=torch.float64)) * most
        counts.update(timesteps[nearest(levels, t)] for t in drawn.tolist() if 0 <= t <= most)
    return counts
