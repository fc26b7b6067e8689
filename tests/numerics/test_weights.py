"""Integer weights: per-channel grids, the search for them, rounding to them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import WeightQParams, round_to_nearest, weight_qparams

SEEDS = st.integers(0, 2**32)
BITS = st.integers(2, 8)
SHAPES = st.sampled_from([(5, 7), (4, 3, 3, 3), (1, 1), (6, 1, 1, 1), (8, 32)])


def weights(seed: int, shape: tuple[int, ...], *, outliers: bool = True) -> Tensor:
    """Normal weights, channels of unlike size, a few outliers."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator)
    if outliers:
        w = torch.where(torch.rand(shape, generator=generator) < 0.02, 6 * w, w)
    return w * (10.0 ** torch.linspace(-3, 2, shape[0])).view(-1, *(1,) * (len(shape) - 1))


def channel_error(weight: Tensor, bits: int, estimator: WeightRange) -> Tensor:
    quantized = round_to_nearest(weight, weight_qparams(weight, bits, estimator))
    return (weight - quantized.dequantize()).square().flatten(1).sum(1)


@given(SEEDS, SHAPES, BITS)
def test_search_is_no_worse_than_min_max_in_any_channel(seed: int, shape: tuple[int, ...], bits: int) -> None:
    w = weights(seed, shape)
    assert (channel_error(w, bits, WeightRange.MSE) <= channel_error(w, bits, WeightRange.MIN_MAX)).all()


@pytest.mark.parametrize(("bits", "gain"), [(2, 0.6), (3, 0.8), (4, 0.9)])
def test_search_is_clearly_better_at_few_bits(bits: int, gain: float) -> None:
    w = weights(0, (8, 288))
    ratios = channel_error(w, bits, WeightRange.MSE) / channel_error(w, bits, WeightRange.MIN_MAX)
    assert ratios.mean() < gain


@given(SEEDS, SHAPES, BITS)
def test_min_max_moves_no_weight_by_more_than_half_a_step(seed: int, shape: tuple[int, ...], bits: int) -> None:
    w = weights(seed, shape)
    qparams = weight_qparams(w, bits, WeightRange.MIN_MAX)
    quantized = round_to_nearest(w, qparams)
    scale, _ = qparams.per_channel(w)
    assert ((w - quantized.dequantize()).abs() <= scale * (0.5 + 1e-4)).all()
    assert quantized.w_q.dtype == torch.uint8
    assert quantized.w_q.max() <= qparams.qmax


@pytest.mark.parametrize("estimator", list(WeightRange))
@given(seed=SEEDS, shape=SHAPES, bits=BITS)
def test_channels_are_quantized_on_their_own(
    estimator: WeightRange, seed: int, shape: tuple[int, ...], bits: int
) -> None:
    w = weights(seed, shape)
    qparams = weight_qparams(w, bits, estimator)
    assert qparams.scale.shape == qparams.zero_point.shape == shape[:1]
    assert (qparams.scale.dtype, qparams.zero_point.dtype) == (torch.float32, torch.uint8)
    last = weight_qparams(w[-1:], bits, estimator)
    torch.testing.assert_close(last.scale, qparams.scale[-1:])
    assert torch.equal(last.zero_point, qparams.zero_point[-1:])


@pytest.mark.parametrize("estimator", list(WeightRange))
@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_stays_zero_and_all_zero_channels_stay(estimator: WeightRange, bits: int) -> None:
    w = weights(0, (4, 10))
    w[1] = 0.0
    w[:, 3] = 0.0
    qparams = weight_qparams(w, bits, estimator)
    assert qparams.scale[1] == 1.0
    w_hat = round_to_nearest(w, qparams).dequantize()
    assert (w_hat[1] == 0).all()
    assert (w_hat[:, 3] == 0).all()


@pytest.mark.parametrize("estimator", list(WeightRange))
def test_channels_of_one_sign(estimator: WeightRange) -> None:
    w = torch.stack([torch.linspace(1, 2, 50), -torch.linspace(1, 2, 50)])
    qparams = weight_qparams(w, 4, estimator)
    assert qparams.zero_point.tolist() == [0, 15]
    assert (w - round_to_nearest(w, qparams).dequantize()).abs().max() <= qparams.scale.max() * 0.501


@pytest.mark.parametrize("estimator", list(WeightRange))
@given(seed=SEEDS, shape=SHAPES, bits=BITS)
def test_every_weight_is_a_signed_byte(estimator: WeightRange, seed: int, shape: tuple[int, ...], bits: int) -> None:
    w = weights(seed, shape) + 0.5
    quantized = round_to_nearest(w, weight_qparams(w, bits, estimator))
    zero_point = quantized.qparams.zero_point.view(-1, *(1,) * (len(shape) - 1))
    signed = quantized.w_q.int() - zero_point.int()
    assert signed.min() >= -128
    assert signed.max() <= 127


def test_weights_on_the_grid_are_kept() -> None:
    qparams = WeightQParams(torch.tensor([0.5, 2.0]), torch.tensor([3, 8], dtype=torch.uint8), 4)
    w = (torch.arange(16.0).repeat(2, 1) - qparams.zero_point[:, None].float()) * qparams.scale[:, None]
    quantized = round_to_nearest(w, qparams)
    assert quantized.w_q.tolist() == [list(range(16))] * 2
    assert torch.equal(quantized.dequantize(), w)


def test_half_precision_is_quantized_in_single() -> None:
    w = weights(0, (4, 9), outliers=False).half()
    for estimator in WeightRange:
        narrow, wide = (round_to_nearest(x, weight_qparams(x, 4, estimator)) for x in (w, w.float()))
        assert narrow.qparams.scale.dtype == narrow.dequantize().dtype == torch.float32
        assert torch.equal(narrow.w_q, wide.w_q)


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_unsupported_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"weight bits is {bits}; supported are 2 to 8"):
        weight_qparams(torch.ones(2, 2), bits, WeightRange.MIN_MAX)


def test_the_weight_is_left_alone() -> None:
    w = weights(0, (3, 8))
    before = w.clone()
    round_to_nearest(w, weight_qparams(w, 3, WeightRange.MSE))
    assert torch.equal(w, before)
