"""Exact statistics of counts: the interval of a share, and a test whether one of two counts is larger."""

from scipy.special import bdtrc, betaincinv

from bitbrush.bench.metrics.interval import Interval

FEWEST_DECIDING = 6
"""Smallest number of values that bound their median, or a share away from one half, at 95 %."""


def share_interval(count: int, of: int, *, confidence: float = 0.95) -> Interval:
    """Computes the share `count / of` with its Clopper-Pearson interval.

    It covers the true share at least as often as `confidence` says. A bootstrap of 0 or of all would have an interval
    of no width, however few there are. Source: Clopper and Pearson, "The Use of Confidence or Fiducial Limits
    Illustrated in the Case of the Binomial", Biometrika 26, 1934, by quantiles of the beta distribution.

    Args:
        count: Number of cases.
        of: Size of the sample.
        confidence: Confidence of the interval.

    Returns:
        The share with its interval.

    Raises:
        ValueError: The count is not from 0 to `of`, or the sample is empty.
    """
    if not 0 <= count <= of or of == 0:
        raise ValueError(f"count is {count} of {of}; a share needs a count from 0 to a number above 0")
    tail = (1 - confidence) / 2
    low = float(betaincinv(count, of - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, of - count, 1 - tail)) if count < of else 1.0
    return Interval(mean=count / of, low=low, high=high, n=of)


def chance_of_as_many(more: int, fewer: int) -> float:
    """Computes the probability of at least `more` heads in `more + fewer` tosses of a fair coin.

    For pairs in which exactly one side has a property it is McNemar's exact test that both have it equally often.
    Source: McNemar, "Note on the Sampling Error of the Difference Between Correlated Proportions", Psychometrika 12,
    1947, in its binomial form.
    """
    return float(bdtrc(more - 1, more + fewer, 0.5)) if more else 1.0
