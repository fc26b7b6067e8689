"""Grids of rows are those of single tensors, row by row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitbrush.numerics.affine import QParams, fake_quantize, quantize
from bitbrush.numerics.dynamic import TokenQParams, fake_quantize_rows, quantize_rows


def some(seed: int, *shape: int) -> Tensor:
    """Rows of very different sizes; some of one sign, one of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * 10 ** torch.randn(*shape[:1], *(1,) * (len(shape) - 1)).mul(2)
    x[0] = 0
    x[1] = x[1].abs() + 1
    x[2] = -x[2].abs() - 1
    return x


@given(st.integers(0, 2**20), st.sampled_from([4, 8, 10, 16]), st.sampled_from([(5, 7), (4, 3, 2, 6)]))
def test_every_row_is_on_the_grid_of_its_own_extremes(seed: int, bits: int, shape: tuple[int, ...]) -> None:
    x, within = some(seed, *shape), len(shape) - 1
    all_qparams = TokenQParams.of(x, bits, within=within)
    assert all_qparams.scale.shape == (shape[0], *(1,) * within)
    x_q, x_hat = quantize_rows(x, all_qparams), fake_quantize_rows(x, bits, within=within)
    for row, own in enumerate(x):
        qparams = QParams.from_range(float(own.min()), float(own.max()), bits)
        assert (float(all_qparams.scale[row]), int(all_qparams.zero_point[row])) == (qparams.scale, qparams.zero_point)
        assert torch.equal(x_q[row].to(torch.int32), quantize(own, qparams))
        assert torch.equal(x_hat[row], fake_quantize(own, qparams))


def test_tokens_and_images_are_rows() -> None:
    x = some(0, 3, 4, 5, 6)
    assert TokenQParams.of(x, 8, within=1).scale.shape == (3, 4, 5, 1)
    assert TokenQParams.of(x, 8, within=3).scale.shape == (3, 1, 1, 1)


def test_one_outlier_costs_its_own_row_alone() -> None:
    x = torch.rand(4, 64, generator=torch.Generator().manual_seed(0))
    outlier = x.clone()
    outlier[2, 5] = 800.0
    before, after = (fake_quantize_rows(one, 8, within=1) for one in (x, outlier))
    assert torch.equal(before[[0, 1, 3]], after[[0, 1, 3]])
    assert not after[2].index_fill(0, torch.tensor([5]), 0).any()  # all others fall below half a step of 800 / 255


@pytest.mark.parametrize("bits", [4, 8])
def test_nan_stays_in_its_row(bits: int) -> None:
    x = some(1, 4, 8)
    x[1, 3] = torch.nan
    y = fake_quantize_rows(x, bits, within=1)
    assert y[1].isnan().any()
    assert y[[0, 2, 3]].isfinite().all()
