"""Power of paired comparisons: the difference that a number of pairs shows."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from bitbrush.bench.metrics.counts import FEWEST_DECIDING

POWER = 0.8
"""Probability with which a true difference of the detectable size is found."""


def detectable_difference(
    differences: NDArray[np.float64], *, power: float = POWER, confidence: float = 0.95
) -> float | None:
    """Computes the smallest mean difference that this many pairs show, from their observed spread.

    ::

        (t(1 - alpha / 2) + t(power)) s / sqrt(N),   alpha = 1 - confidence

    `s` is the standard deviation of the N paired differences, and `t` are quantiles of Student's distribution with
    N - 1 degrees of freedom. A true mean difference of this size gets an interval without 0 with probability `power`.

    Source: Julious, "Sample sizes for clinical trials with Normal data", Statistics in Medicine 23, 2004, section 3.

    Args:
        differences: Paired differences, `(N,)`.
        power: Probability with which a difference of the returned size is found.
        confidence: Confidence of the interval.

    Returns:
        The difference, in the unit of the values; None for fewer than 6 pairs, or pairs that do not differ in spread.
    """
    count = differences.size
    if count < FEWEST_DECIDING:
        return None
    spread = float(np.std(differences, ddof=1))
    quantiles = float(stdtrit(count - 1, (1 + confidence) / 2) + stdtrit(count - 1, power))
    return quantiles * spread / math.sqrt(count) if spread > 0 else None
