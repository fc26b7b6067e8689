"""Exact statements about counts: intervals of a share, and whether one of two counts is larger beyond chance."""

from scipy.special import bdtrc, betaincinv

from bitbrush.bench.metrics.interval import Interval

FEWEST_DECIDING = 6
"""Five values or fewer bound neither their median nor, at 95 %, a share away from one half."""


def share_interval(count: int, of: int, *, confidence: float = 0.95) -> Interval:
    """The share `count / of` with its Clopper-Pearson interval, which covers the true share at least that often.

    A bootstrap of 0 or of all has an interval of no width, however few there are; this one does not. Raises ValueError
    for a count outside 0 to `of`, or an empty sample. Source: Clopper and Pearson, "The Use of Confidence or Fiducial
    Limits Illustrated in the Case of the Binomial", Biometrika 26, 1934, by quantiles of the beta distribution.
    """
    if not 0 <= count <= of or of == 0:
        raise ValueError(f"count is {count} of {of}; a share needs a count from 0 to a number above 0")
    tail = (1 - confidence) / 2
    low = float(betaincinv(count, of - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, of - count, 1 - tail)) if count < of else 1.0
    return Interval(mean=count / of, low=low, high=high, n=of)


def chance_of_as_many(more: int, fewer: int) -> float:
    """The probability that fair coins fall on one side at least `more` times out of `more + fewer`.

    Of pairs in which exactly one side shows something, this is McNemar's exact test that both show it equally often.
    Source: McNemar, "Note on the Sampling Error of the Difference Between Correlated Proportions", Psychometrika 12,
    1947, in its binomial form.
    """
    return float(bdtrc(more - 1, more + fewer, 0.5)) if more else 1.0
