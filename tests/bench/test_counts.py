"""Exact intervals of shares: agreement with SciPy's, coverage of every share, and the exact test of two counts."""

import pytest
from scipy import stats

from bitbrush.bench.metrics.counts import chance_of_as_many, share_interval


@pytest.mark.parametrize("of", [1, 3, 6, 17, 128])
def test_agrees_with_scipy(of: int) -> None:
    for count in range(of + 1):
        ours, theirs = share_interval(count, of), stats.binomtest(count, of).proportion_ci(0.95, method="exact")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert (ours.mean, ours.n) == (count / of, of)


@pytest.mark.parametrize("of", [3, 8, 16, 64])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.88, 0.95, 0.999])
def test_covers_the_true_share_at_least_as_often_as_it_says(of: int, share: float) -> None:
    counts = [
        count for count in range(of + 1) if share_interval(count, of).low <= share <= share_interval(count, of).high
    ]
    assert stats.binom.pmf(counts, of, share).sum() >= 0.95


def test_none_and_all_of_a_few_are_no_certainty() -> None:
    assert share_interval(0, 3).high == pytest.approx(0.7076, abs=1e-4)
    assert share_interval(3, 3).low == pytest.approx(0.2924, abs=1e-4)
    for count, of in ((-1, 3), (4, 3), (0, 0)):
        with pytest.raises(ValueError, match=f"count is {count} of {of}"):
            share_interval(count, of)


@pytest.mark.parametrize(("more", "fewer"), [(0, 0), (1, 0), (6, 0), (51, 50), (3, 9)])
def test_the_test_of_two_counts_agrees_with_scipy(more: int, fewer: int) -> None:
    expected = stats.binomtest(more, more + fewer, alternative="greater").pvalue if more + fewer else 1.0
    assert chance_of_as_many(more, fewer) == pytest.approx(expected)
