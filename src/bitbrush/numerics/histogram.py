"""What is remembered of a stream of activations: exact extremes and a histogram that grows with them."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

BINS = 1024
SAMPLES_PER_UPDATE = 1 << 16
_LIMIT = 2.0**126  # twice the bounds of the histogram must still be a float32


class NonFiniteError(ValueError):
    """A tensor to be observed holds NaN or infinity, or is about to overflow."""


@dataclass(frozen=True)
class Histogram:
    """Extremes of everything seen and counts over ``[-2^exponent, 2^exponent)``.

    The bounds are powers of two, so growing merges neighbouring bins exactly: the result depends on what was seen, not
    on the order, and two histograms merge (between prompt batches, between processes) without loss.

    ``low``, ``high`` are exact over all elements; ``counts`` (BINS,), float64, are taken from at most
    ``SAMPLES_PER_UPDATE`` evenly strided elements of each tensor, which bounds the cost of observing. The stride has
    no divisor in common with any dimension: every channel, row and column has its share of the samples.
    """

    low: float
    high: float
    exponent: int
    counts: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Raises NonFiniteError if ``x`` holds NaN, infinity or magnitudes from 2^126."""
        low, high = (float(bound) for bound in torch.aminmax(x.detach()))
        if not (low > -_LIMIT and high < _LIMIT):
            raise NonFiniteError(f"values from {low} to {high}")
        exponent = math.frexp(max(-low, high, 2.0**-100))[1]
        flat = x.detach().reshape(-1)
        stride = _stride(flat.numel())
        bound = math.ldexp(1.0, exponent)
        return cls(low, high, exponent, torch.histc(flat[::stride].float(), BINS, -bound, bound).double())

    def merge(self, other: Self) -> Self:
        exponent = max(self.exponent, other.exponent)
        counts = _widen(self.counts, exponent - self.exponent) + _widen(other.counts, exponent - other.exponent)
        return type(self)(min(self.low, other.low), max(self.high, other.high), exponent, counts)

    @property
    def edges(self) -> Tensor:
        """Bounds of the bins, (BINS + 1,), float64."""
        width = math.ldexp(2.0, self.exponent) / BINS
        return (torch.arange(BINS + 1, dtype=torch.float64) - BINS / 2) * width

    @property
    def centers(self) -> Tensor:
        """Middle of each bin, (BINS,), float64."""
        return (self.edges[:-1] + self.edges[1:]) / 2


def _stride(elements: int) -> int:
    stride = -(-elements // SAMPLES_PER_UPDATE)
    while math.gcd(stride, elements) > 1:
        stride += 1
    return stride


def _widen(counts: Tensor, doublings: int) -> Tensor:
    """The same counts over a range ``2^doublings`` times as wide."""
    for _ in range(min(doublings, BINS.bit_length())):
        wide = torch.zeros_like(counts)
        wide[BINS // 4 : 3 * BINS // 4] = counts.view(-1, 2).sum(1)
        counts = wide
    return counts
