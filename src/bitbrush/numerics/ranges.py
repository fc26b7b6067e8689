"""Range estimators: from histograms of activations to quantization parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitbrush.numerics.affine import QParams
from bitbrush.numerics.histogram import Histogram
from bitbrush.numerics.limits import RangeEstimator

PERCENTILE = 0.9999


def find_qparams(estimator: RangeEstimator, histograms: Sequence[Histogram], bits: Sequence[int]) -> list[QParams]:
    """Computes the quantization parameters of all histograms at once.

    Args:
        estimator: How the range follows from a histogram.
        histograms: One histogram per tensor.
        bits: Bits of each tensor.
    """
    match estimator:
        case RangeEstimator.MIN_MAX:
            ranges = [(histogram.low, histogram.high) for histogram in histograms]
        case RangeEstimator.PERCENTILE:
            ranges = [_percentile(histogram) for histogram in histograms]
        case RangeEstimator.MSE:
            ranges = _Search(histograms, bits, power=2).ranges()
        case RangeEstimator.L4:
            ranges = _Search(histograms, bits, power=4).ranges()
    return [QParams.from_range(low, high, b) for (low, high), b in zip(ranges, bits, strict=True)]


def _percentile(histogram: Histogram) -> tuple[float, float]:
    cumulative = histogram.counts.cumsum(0) / histogram.counts.sum()
    tail = (1 - PERCENTILE) / 2
    centers = histogram.centers
    low = float(centers[int(torch.searchsorted(cumulative, tail))])
    high = float(centers[min(int(torch.searchsorted(cumulative, 1 - tail)), len(centers) - 1)])
    return max(low, histogram.low), min(high, histogram.high)


class _Search:
    """Coordinate search for the ranges with the least ``E|x - x_hat|^power``, for N histograms at once.

    Both ends shrink together first. Then each end alone moves around the best range so far, twice, the second time in
    finer steps. A range never exceeds the observed one.

    The expectation is exact for values spread evenly within each bin. At 8 bits and more a bin is as wide as a
    quantization step, so its center alone would say nothing about the rounding error.
    """

    _JOINT = torch.linspace(1.0, 0.05, 48).tolist()
    _SINGLE = ((0.5, 0.625, 0.75, 0.875, 1.125, 1.25, 1.5, 2.0), (0.92, 0.94, 0.96, 0.98, 1.02, 1.04, 1.06, 1.08))

    def __init__(self, histograms: Sequence[Histogram], bits: Sequence[int], *, power: int) -> None:
        self._power = power
        self._observed_low = torch.tensor([min(h.low, 0.0) for h in histograms])[:, None]
        self._observed_high = torch.tensor([max(h.high, 0.0) for h in histograms])[:, None]
        self._qmax = torch.tensor([float((1 << b) - 1) for b in bits])[:, None]
        self._edges = torch.stack([h.edges for h in histograms]).float()
        self._density = torch.stack([h.counts / (h.counts.sum() * h.edges.diff()) for h in histograms]).float()
        self._low, self._high = self._observed_low, self._observed_high
        self._least = self._error(self._low, self._high)

    def ranges(self) -> list[tuple[float, float]]:
        for factor in self._JOINT[1:]:
            self._consider(self._observed_low * factor, self._observed_high * factor)
        for factors in self._SINGLE:
            start = self._low
            for factor in factors:
                self._consider((start * factor).maximum(self._observed_low), self._high)
            start = self._high
            for factor in factors:
                self._consider(self._low, (start * factor).minimum(self._observed_high))
        return list(zip(self._low[:, 0].tolist(), self._high[:, 0].tolist(), strict=True))

    def _consider(self, low: Tensor, high: Tensor) -> None:
        error = self._error(low, high)
        better = error < self._least
        self._least = torch.where(better, error, self._least)
        self._low, self._high = torch.where(better, low, self._low), torch.where(better, high, self._high)

    def _error(self, low: Tensor, high: Tensor) -> Tensor:
        """Computes ``sum over bins of density * integral of |x - x_hat|^power``, (N, 1).

        Let ``u = x / scale``, ``n`` its quantized integer and ``f = u - n``. The integral of ``|f|^p`` from zero on is
        ``(n / 2^p + sign(f) |f|^(p + 1)) / (p + 1)``, clipped values included. The common factor ``1 / (p + 1)`` is
        left out.
        """
        scale = ((high - low) / self._qmax).clamp_min(1e-30)
        zero_point = (-low / scale).round_()
        u = self._edges / scale
        n = u.round().maximum(-zero_point).minimum(self._qmax - zero_point)
        f = u.sub_(n)
        integral = f.abs().pow_(self._power).mul_(f).add_(n, alpha=2.0**-self._power)
        return scale ** (self._power + 1) * (integral.diff() * self._density).sum(1, keepdim=True)
