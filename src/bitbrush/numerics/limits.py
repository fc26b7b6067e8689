"""What the numerics support, by number and by name; free of torch, so that command lines can read it at once."""

from enum import StrEnum

MIN_BITS, MAX_BITS = 2, 16
"""Bits of affine quantization parameters."""
MIN_WEIGHT_BITS, MAX_WEIGHT_BITS = 2, 8


class WeightRange(StrEnum):
    """How the range of an output channel's weights is found."""

    MIN_MAX = "min-max"
    MSE = "mse"


class RangeEstimator(StrEnum):
    """How an activation range follows from a histogram; :func:`bitbrush.numerics.ranges.find_qparams` computes it."""

    MIN_MAX = "min-max"
    """The exact extremes: nothing is clipped."""
    PERCENTILE = "percentile"
    """The central 99.99 % of the histogram, within the extremes."""
    MSE = "mse"
    """The range inside the extremes with the least expected squared error, bin by bin."""
    L4 = "l4"
    """The same with the fourth power of the error: clips less, because rare large values carry the image."""
