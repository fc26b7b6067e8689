"""Histograms: exact counts and extremes, whatever the order and the batches."""

import math
from functools import reduce
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitbrush.numerics.histogram import BINS, SAMPLES_PER_UPDATE, Histogram, NonFiniteError


def equal(a: Histogram, b: Histogram) -> bool:
    return (a.low, a.high, a.exponent) == (b.low, b.high, b.exponent) and torch.equal(a.counts, b.counts)


def count_exactly(x: Tensor, exponent: int) -> Tensor:
    """Counts by the definition, in double precision: bin = floor((x + 2^e) / width)."""
    width = math.ldexp(2.0, exponent) / BINS
    index = ((x.double() + math.ldexp(1.0, exponent)) / width).floor().long().flatten()
    return torch.bincount(index, minlength=BINS).double()


# Magnitudes over three decades, so that merging has to grow by many doublings, and by none.
STREAMS = st.lists(st.tuples(st.integers(0, 2**32), st.integers(-5, 5), st.integers(1, 200)), min_size=1, max_size=4)


def tensors(stream: list[tuple[int, int, int]]) -> list[Tensor]:
    """Random tensors of dyadic numbers of 12 digits: float32 bins them without rounding at every scale."""
    made = []
    for seed, exponent, size in stream:
        digits = torch.randint(1 - (1 << 12), 1 << 12, (size,), generator=torch.Generator().manual_seed(seed))
        made.append(digits.float() * 2.0 ** (exponent - 12))
    return made


@given(STREAMS)
def test_order_of_merging_changes_nothing(stream: list[tuple[int, int, int]]) -> None:
    histograms = [Histogram.of(x) for x in tensors(stream)]
    first = reduce(Histogram.merge, histograms)
    for order in permutations(histograms):
        assert equal(reduce(Histogram.merge, order), first)
    if len(histograms) == 4:
        a, b, c, d = histograms
        assert equal(a.merge(b).merge(c.merge(d)), first)


@given(STREAMS)
def test_merging_is_seeing_everything_at_once(stream: list[tuple[int, int, int]]) -> None:
    parts = tensors(stream)
    whole = Histogram.of(torch.cat(parts))
    merged = reduce(Histogram.merge, map(Histogram.of, parts))
    assert (merged.low, merged.high, merged.exponent) == (whole.low, whole.high, whole.exponent)
    assert merged.counts.sum() == whole.counts.sum() == sum(part.numel() for part in parts)
    assert torch.equal(merged.counts, whole.counts)


@given(st.integers(0, 2**32), st.integers(-20, 20))
def test_counts_are_those_of_the_definition(seed: int, exponent: int) -> None:
    x = tensors([(seed, exponent, 500)])[0].view(5, 100)
    histogram = Histogram.of(x)
    assert torch.equal(histogram.counts, count_exactly(x, histogram.exponent))
    assert (histogram.low, histogram.high) == (x.min().item(), x.max().item())
    bound = math.ldexp(1.0, histogram.exponent)
    assert bound / 2 <= x.abs().max() < bound or x.abs().max() == 0


def test_growth_keeps_every_count_in_its_place() -> None:
    x = tensors([(0, 0, 1000)])[0]
    for doublings in range(16):
        grown = Histogram.of(x).merge(Histogram.of(torch.tensor([0.75 * 2.0**doublings])))
        expected = count_exactly(x, doublings) + count_exactly(torch.tensor([0.75 * 2.0**doublings]), doublings)
        assert grown.exponent == doublings
        assert torch.equal(grown.counts, expected)


def test_centers_are_the_middles_of_the_bins() -> None:
    histogram = Histogram.of(torch.tensor([-3.0, 1.0]))
    assert histogram.exponent == 2
    assert histogram.centers.dtype == torch.float64
    width = 8.0 / BINS
    assert histogram.centers[0] == -4.0 + width / 2
    assert histogram.centers[-1] == 4.0 - width / 2
    seen = histogram.centers[histogram.counts > 0]
    assert (seen - torch.tensor([-3.0, 1.0])).abs().max() <= width / 2


def test_large_tensors_are_sampled_but_their_extremes_are_exact() -> None:
    x = torch.randn(3 * SAMPLES_PER_UPDATE + 5, generator=torch.Generator().manual_seed(0))
    x[1], x[2] = -9.0, 7.5  # not among the samples
    histogram = Histogram.of(x)
    assert (histogram.low, histogram.high) == (-9.0, 7.5)
    assert histogram.counts.sum() == pytest.approx(x.numel(), rel=1e-3)
    # The bounds are +-16, and of the two values one lies in the outer half, where each is counted.
    assert histogram.counts[: BINS // 4].tolist() == torch.histc(x, BINS, -16, 16)[: BINS // 4].tolist()
    assert histogram.counts[: BINS // 4].sum() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_narrow_and_wide_dtypes(dtype: torch.dtype) -> None:
    histogram = Histogram.of(torch.tensor([[0.5, -2.0], [1.5, 0.0]], dtype=dtype))
    assert (histogram.low, histogram.high, histogram.exponent) == (-2.0, 1.5, 2)
    assert histogram.counts.sum() == 4
    assert histogram.counts.dtype == torch.float64


def test_all_zeros() -> None:
    histogram = Histogram.of(torch.zeros(7)).merge(Histogram.of(torch.zeros(3)))
    assert (histogram.low, histogram.high) == (0.0, 0.0)
    assert histogram.counts.sum() == 10
    grown = histogram.merge(Histogram.of(torch.tensor([100.0])))
    assert grown.counts[BINS // 2] == 10


def test_gradients_do_not_matter() -> None:
    assert not Histogram.of(torch.ones(3, requires_grad=True)).counts.requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_refused(bad: float) -> None:
    x = torch.zeros(10)
    x[3] = bad
    with pytest.raises(NonFiniteError, match=r"values from .*(nan|inf)"):
        Histogram.of(x)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_values_about_to_overflow_are_refused(sign: float) -> None:
    assert Histogram.of(torch.tensor([sign * 8e37, 0.0])).counts.sum() == 2
    for huge in (2.0**126, torch.finfo(torch.float32).max):
        with pytest.raises(NonFiniteError, match="values from"):
            Histogram.of(torch.tensor([sign * huge, 0.0]))


def test_every_channel_has_its_share_of_the_samples() -> None:
    channels = 64
    x = torch.arange(channels).float().view(1, channels, 1, 1).expand(32, channels, 16, 16).contiguous()
    counts = Histogram.of(x).counts
    assert int((counts > 0).sum()) == channels
    assert float(counts[counts > 0].min()) > 0.9 * float(counts.max())
