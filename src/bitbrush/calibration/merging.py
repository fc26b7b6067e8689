"""Merging of histograms over processes, bit-identical to the histogram of a single process."""

from collections.abc import Sequence

import torch

from bitbrush.network.inputs import InputObserver
from bitbrush.numerics.histogram import BINS, Histogram
from bitbrush.session.ranks import Ranks

UNSEEN = -(1 << 30)
"""Exponent for a missing histogram, smaller than any real exponent."""


def merged_over_ranks(observer: InputObserver, names: Sequence[str], ranks: Ranks) -> InputObserver:
    """Merges the input histograms of the layers ``names`` over all processes.

    Minima and maxima are reduced directly; counts are summed over the widest range. Counts are whole numbers in
    float64, so that their sum is exact in any order.

    Args:
        observer: Histograms of this process.
        names: Layer names, the same in all processes.
        ranks: Processes.

    Returns:
        Merged histograms; a layer that no process called is left out.
    """
    if ranks.world == 1:
        return observer
    histograms = [observer.histograms.get(name) for name in names]
    low = ranks.least(_column([histogram.low if histogram else torch.inf for histogram in histograms])).tolist()
    high = ranks.most(_column([histogram.high if histogram else -torch.inf for histogram in histograms])).tolist()
    exponents = ranks.most(
        torch.tensor([histogram.exponent if histogram else UNSEEN for histogram in histograms])
    ).tolist()
    local_counts = [
        histogram.counts_to(exponent) if histogram else _column([0.0] * BINS)
        for histogram, exponent in zip(histograms, exponents, strict=True)
    ]
    counts = ranks.sum(torch.stack(local_counts))
    merged = InputObserver()
    for index, name in enumerate(names):
        if exponents[index] != UNSEEN:
            merged.histograms[name] = Histogram(low[index], high[index], exponents[index], counts[index])
    return merged


def _column(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
