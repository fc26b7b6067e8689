"""Statistics of a stream of activations: exact extremes and a histogram that grows with them."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

BINS = 1024
SAMPLES_PER_UPDATE = 1 << 16
_LIMIT = 2.0**126  # twice the bounds of the histogram must still be a float32


class NonFiniteError(ValueError):
    """An observed tensor contains NaN or infinity, or is about to overflow."""


@dataclass(frozen=True)
class Histogram:
    """Extremes of all observed values and counts over ``[-2^exponent, 2^exponent)``.

    The bounds are powers of two, so growing merges neighbouring bins exactly. The result depends on the values and not
    on their order. Two histograms merge (between prompt batches, between processes) without loss.

    ``low`` and ``high`` are exact over all elements. ``counts`` has shape (BINS,) and dtype float64. Its outer half is
    exact, too, because these rare values decide what clipping costs. Its inner half is estimated from at most
    ``SAMPLES_PER_UPDATE`` evenly strided elements of each tensor, which bounds the cost of observing. The stride has no
    divisor in common with any dimension, so every channel, row and column contributes samples.
    """

    low: float
    high: float
    exponent: int
    counts: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Builds the histogram of a tensor.

        Raises:
            NonFiniteError: ``x`` contains NaN, infinity or magnitudes from 2^126.
        """
        low, high = (float(bound) for bound in torch.aminmax(x.detach()))
        if not (low > -_LIMIT and high < _LIMIT):
            raise NonFiniteError(f"values from {low} to {high}")
        exponent = math.frexp(max(-low, high, 2.0**-100))[1]
        bound = math.ldexp(1.0, exponent)
        return cls(low, high, exponent, _counts(x.detach().reshape(-1).float(), bound))

    def merge(self, other: Self) -> Self:
        """Merges two histograms into that of all values of both."""
        exponent = max(self.exponent, other.exponent)
        counts = self.counts_to(exponent) + other.counts_to(exponent)
        return type(self)(min(self.low, other.low), max(self.high, other.high), exponent, counts)

    def times(self, count: int) -> Self:
        """Multiplies the counts by ``count``, which equals observing every value ``count`` times."""
        return replace(self, counts=self.counts * count)

    def counts_to(self, exponent: int) -> Tensor:
        """Rebins the counts to ``[-2^exponent, 2^exponent)``.

        Args:
            exponent: At least the histogram's own.

        Returns:
            Counts, shape (BINS,), float64.
        """
        return _widen(self.counts, exponent - self.exponent)

    @property
    def edges(self) -> Tensor:
        """Bounds of the bins, (BINS + 1,), float64."""
        width = math.ldexp(2.0, self.exponent) / BINS
        return (torch.arange(BINS + 1, dtype=torch.float64) - BINS / 2) * width

    @property
    def centers(self) -> Tensor:
        """Middle of each bin, (BINS,), float64."""
        return (self.edges[:-1] + self.edges[1:]) / 2


def _counts(flat: Tensor, bound: float) -> Tensor:
    """Estimates counts of all elements: exact in the outer half of the range, from a sample in the rest."""
    stride = _stride(flat.numel())
    sample = flat[::stride]
    counts = torch.histc(sample, BINS, -bound, bound).cpu().double() * stride
    if stride > 1:
        counts[: BINS // 4] = counts[3 * BINS // 4 :] = 0
        # histc assigns a bin's lower edge to that bin, on both sides of zero, so these comparisons must, too.
        outer = flat[(flat < -bound / 2) | (flat >= bound / 2)]
        counts += torch.histc(outer, BINS, -bound, bound).cpu().double()
    return counts


def _stride(elements: int) -> int:
    stride = -(-elements // SAMPLES_PER_UPDATE)
    while math.gcd(stride, elements) > 1:
        stride += 1
    return stride


def _widen(counts: Tensor, doublings: int) -> Tensor:
    """Rebins the counts to a range ``2^doublings`` times as wide."""
    for _ in range(min(doublings, BINS.bit_length())):
        wide = torch.zeros_like(counts)
        wide[BINS // 4 : 3 * BINS // 4] = counts.view(-1, 2).sum(1)
        counts = wide
    return counts
