"""Supported bits and counts, and the names of range estimators; free of torch, so that command lines start fast."""

from enum import StrEnum

MIN_BITS, MAX_BITS = 2, 16
"""Bits of affine quantization parameters."""
MIN_WEIGHT_BITS, MAX_WEIGHT_BITS = 2, 8
MAX_SEED = 2**63 - 1
"""Largest seed of torch's generators that a signed integer of 64 bits holds, too."""
MAX_STEPS = 10_000
"""Denoising steps; a scheduler has its own limit, most often 1000."""
MAX_COUNT = 1_000_000
"""Prompts, images or samples of one run; a larger number is most likely a typing error."""


class WeightRange(StrEnum):
    """Estimator of the weight range of an output channel."""

    MIN_MAX = "min-max"
    MSE = "mse"


class RangeEstimator(StrEnum):
    """Estimator of an activation range from a histogram, see :func:`bitbrush.numerics.ranges.find_qparams`."""

    MIN_MAX = "min-max"
    """The exact extremes: nothing is clipped."""
    PERCENTILE = "percentile"
    """The central 99.99 % of the histogram, within the extremes."""
    MSE = "mse"
    """The range inside the extremes with the least expected squared error, bin by bin."""
    L4 = "l4"
    """The range with the least expected fourth power of the error.

    It clips less than MSE, because rare large values carry the image.
    """
