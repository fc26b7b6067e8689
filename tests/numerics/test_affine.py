"""Affine grids: what they cover, how far a value is moved, and that the two ways to quantize agree."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitbrush.numerics.affine import QParams, dequantize, fake_quantize, quantize

BITS = st.integers(2, 16)
VALUES = st.floats(-(2.0**100), 2.0**100, width=32)
RELATIVE_ROUNDING = 2.0**-21  # a few float32 roundings of values up to 2^16 scales


@st.composite
def qparams(draw: st.DrawFn) -> QParams:
    bits = draw(BITS)
    scale = draw(st.floats(2.0**-20, 2.0**20, width=32))
    return QParams(scale, draw(st.integers(0, (1 << bits) - 1)), bits)


def spread(qparams: QParams, *, beyond: float = 0.0) -> torch.Tensor:
    """Values all over the grid's range, `beyond` times its width past either end."""
    low, high = qparams.range
    margin = beyond * (high - low)
    return torch.linspace(low - margin, high + margin, 4097)


@given(qparams())
def test_error_is_half_a_step_inside_the_range(qparams: QParams) -> None:
    x = spread(qparams)
    error = (x.double() - fake_quantize(x, qparams).double()).abs()
    assert error.max() <= qparams.scale * (0.5 + RELATIVE_ROUNDING * qparams.qmax)


@given(VALUES, VALUES, BITS)
def test_a_grid_made_from_a_range_is_half_a_step_from_everything_in_it(a: float, b: float, bits: int) -> None:
    low, high = min(a, b), max(a, b)
    qparams = QParams.from_range(low, high, bits)
    x = torch.linspace(low, high, 1001)
    error = (x.double() - fake_quantize(x, qparams).double()).abs()
    if max(-low, high) / qparams.qmax >= torch.finfo(torch.float32).tiny:
        assert error.max() <= qparams.scale * (0.5 + RELATIVE_ROUNDING * qparams.qmax)
    else:
        assert error.max() <= max(-low, high, 0)


@given(qparams())
def test_values_beyond_the_range_go_to_its_ends(qparams: QParams) -> None:
    x = spread(qparams, beyond=1.0)
    x_hat = fake_quantize(x, qparams)
    low, high = (torch.tensor(end) for end in qparams.range)
    torch.testing.assert_close(x_hat.min(), low, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(x_hat.max(), high, rtol=1e-6, atol=0.0)
    ends = fake_quantize(torch.tensor([-math.inf, math.inf]), qparams)
    assert torch.equal(ends, torch.stack([x_hat.min(), x_hat.max()]))


@given(qparams())
def test_fake_quantize_is_dequantize_after_quantize(qparams: QParams) -> None:
    x = torch.cat([spread(qparams, beyond=0.7), torch.tensor([0.0, -0.0, 1e30, -1e30, math.inf, -math.inf])])
    assert torch.equal(fake_quantize(x, qparams), dequantize(quantize(x, qparams), qparams))


@pytest.mark.parametrize("bits", range(2, 17))
def test_every_integer_survives(bits: int) -> None:
    qparams = QParams.from_range(-1.7, 0.9, bits)
    x_q = torch.arange(qparams.qmax + 1, dtype=torch.int32)
    x_hat = dequantize(x_q, qparams)
    assert torch.equal(quantize(x_hat, qparams), x_q)
    assert torch.equal(fake_quantize(x_hat, qparams), x_hat)
    assert len(x_hat.unique()) == 1 << bits


@given(VALUES, VALUES, BITS)
def test_zero_is_exact(a: float, b: float, bits: int) -> None:
    qparams = QParams.from_range(min(a, b), max(a, b), bits)
    zero = torch.zeros(1)
    assert quantize(zero, qparams).item() == qparams.zero_point
    assert fake_quantize(zero, qparams).item() == 0.0


def test_nan_stays_nan() -> None:
    x = torch.tensor([1.0, math.nan, -1.0])
    assert fake_quantize(x, QParams(0.1, 8, 4)).isnan().tolist() == [False, True, False]


def test_rounds_half_to_even_and_leaves_its_argument_alone() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    before = x.clone()
    qparams = QParams(1.0, 8, 4)
    assert quantize(x, qparams).tolist() == [8, 10, 10, 8, 6]
    assert fake_quantize(x, qparams).tolist() == [0, 2, 2, 0, -2]
    assert torch.equal(x, before)


def test_known_grids() -> None:
    assert QParams.from_range(-1.0, 2.0, 2) == QParams(1.0, 1, 2)
    assert QParams.from_range(0.0, 255.0, 8).range == (0.0, 255.0)
    assert QParams.from_range(-15.0, 0.0, 4) == QParams(1.0, 15, 4)
    assert quantize(torch.tensor([-9.0, -1.0, 0.0, 1.0, 2.0, 9.0]), QParams(1.0, 1, 2)).tolist() == [
        0, 0, 1, 2, 3, 3,
    ]  # fmt: skip


@pytest.mark.parametrize(("low", "high"), [(3.0, 6.0), (6.0, 6.0), (-6.0, -3.0), (-6.0, -6.0)])
def test_ranges_away_from_zero_are_extended_to_it(low: float, high: float) -> None:
    qparams = QParams.from_range(low, high, 8)
    assert qparams == QParams.from_range(min(low, 0.0), max(high, 0.0), 8)
    assert fake_quantize(torch.tensor([low, high]), qparams).tolist() == pytest.approx(
        [low, high], abs=qparams.scale * 0.5001
    )


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-0.0, 0.0), (0.0, 1e-45), (-1e-44, 0.0)])
def test_empty_range_gets_scale_one(low: float, high: float) -> None:
    assert QParams.from_range(low, high, 8) == QParams(1.0, 0, 8)


@pytest.mark.parametrize(
    ("scale", "zero_point", "bits", "message"),
    [
        (1.0, 0, 1, "bits is 1; supported are 2 to 16"),
        (1.0, 0, 17, "bits is 17; supported are 2 to 16"),
        (0.0, 0, 8, "scale is 0.0; it must be finite and positive"),
        (-1.0, 0, 8, "scale is -1.0"),
        (math.nan, 0, 8, "scale is nan"),
        (math.inf, 0, 8, "scale is inf"),
        (1.0, -1, 8, r"zero_point is -1; with 8 bits it lies in \[0, 255\]"),
        (1.0, 256, 8, "zero_point is 256"),
    ],
)
def test_impossible_grids_are_refused(scale: float, zero_point: int, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QParams(scale, zero_point, bits)


@pytest.mark.parametrize("bits", [-1, 0, 1, 17])
def test_a_range_is_refused_unsupported_bits(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits is {bits}; supported are 2 to 16"):
        QParams.from_range(-1.0, 1.0, bits)
