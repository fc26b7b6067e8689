"""Histograms of several processes as one: what a single process would have seen, to the last bit."""

from collections.abc import Sequence

import torch

from bitbrush.network.inputs import InputObserver
from bitbrush.numerics.histogram import BINS, Histogram
from bitbrush.session.ranks import Ranks

UNSEEN = -(1 << 30)
"""The exponent of a histogram that a process lacks: less than any that there is."""


def merged_over_ranks(observer: InputObserver, names: Sequence[str], ranks: Ranks) -> InputObserver:
    """What the layers ``names`` were given in all processes; a layer that was called in none is left out.

    Extremes are reduced as such, counts added up over the widest range. They are whole numbers in float64: the sum is
    exact in any order.
    """
    if ranks.world == 1:
        return observer
    seen = [observer.histograms.get(name) for name in names]
    low = ranks.least(_column([one.low if one else torch.inf for one in seen])).tolist()
    high = ranks.most(_column([one.high if one else -torch.inf for one in seen])).tolist()
    exponents = ranks.most(torch.tensor([one.exponent if one else UNSEEN for one in seen])).tolist()
    own = [
        one.counts_to(exponent) if one else _column([0.0] * BINS) for one, exponent in zip(seen, exponents, strict=True)
    ]
    counts = ranks.sum(torch.stack(own))
    merged = InputObserver()
    for index, name in enumerate(names):
        if exponents[index] != UNSEEN:
            merged.histograms[name] = Histogram(low[index], high[index], exponents[index], counts[index])
    return merged


def _column(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
