"""Histograms of several processes merge to what one would have seen, to the last bit."""

import torch
from torch import Generator

from bitbrush.calibration.merging import merged_over_ranks
from bitbrush.network.inputs import InputObserver
from bitbrush.numerics.histogram import Histogram
from bitbrush.session.ranks import Ranks
from tests.thread_ranks import in_threads

NAMES = ("both", "first", "never", "second")


def observed(rank: int) -> InputObserver:
    """Values of another magnitude in each process, and a layer that only it has called."""
    observer = InputObserver()
    for name in ("both", NAMES[1 + 2 * rank]):
        x = torch.randn(50_000, generator=Generator().manual_seed(rank)) * 9.0 ** (1 - 2 * rank)
        observer.histograms[name] = Histogram.of(x)
    return observer


def test_merged_as_by_one_process() -> None:
    def merged(ranks: Ranks) -> InputObserver:
        return merged_over_ranks(observed(ranks.rank), NAMES, ranks)

    expected = observed(0)
    expected.add(observed(1))
    for result in in_threads(2, merged):
        assert result.histograms.keys() == expected.histograms.keys() == {"both", "first", "second"}
        for name, histogram in expected.histograms.items():
            found = result.histogram(name)
            assert (found.low, found.high, found.exponent) == (histogram.low, histogram.high, histogram.exponent)
            assert torch.equal(found.counts, histogram.counts)


def test_one_process_keeps_its_own() -> None:
    own = observed(0)
    assert merged_over_ranks(own, NAMES, Ranks()) is own
