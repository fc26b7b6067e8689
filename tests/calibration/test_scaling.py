"""The searched exponent: never worse than none on what it is searched on, and large where inputs have outliers."""

import pytest
import torch
import torch.nn.functional as F

from bitbrush.calibration.scaling import ALPHAS, LayerBits, least_error_scale
from bitbrush.network.smoothing import channel_scale
from bitbrush.numerics.affine import fake_quantize
from bitbrush.numerics.histogram import Histogram
from bitbrush.numerics.limits import RangeEstimator, WeightRange
from bitbrush.numerics.ranges import find_qparams
from bitbrush.numerics.weights import round_to_nearest, weight_grid

BITS = LayerBits(8, 4, WeightRange.MSE, RangeEstimator.MSE)


def case(outlier: float, *, weight_outlier: float = 1.0) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 16, generator=generator)
    samples = [torch.randn(64, 16, generator=generator) for _ in range(3)]
    weight[:, 5] *= weight_outlier
    for x in samples:
        x[:, 2] *= outlier
    return weight, samples, torch.stack([x.abs().amax(0) for x in samples]).amax(0)


def error(weight: torch.Tensor, samples: list[torch.Tensor], scale: torch.Tensor, bits: LayerBits) -> float:
    """Of the layer as it would be executed, apart from the code under test."""
    w = weight * scale
    w_hat = round_to_nearest(w, weight_grid(w, bits.weights, bits.weight_range)).dequantize()
    total = 0.0
    for x in samples:
        (grid,) = find_qparams(bits.activation_range, [Histogram.of(x / scale)], [bits.activations])
        total += float((F.linear(fake_quantize(x / scale, grid), w_hat) - F.linear(x, weight)).square().sum())
    return total


def test_outliers_of_an_input_are_moved_and_the_error_falls() -> None:
    weight, samples, extremes = case(50.0)
    scale = least_error_scale(weight, extremes, samples, BITS)
    assert scale is not None
    assert scale[2] > 3 * scale.median()
    assert error(weight, samples, scale, BITS) < 0.5 * error(weight, samples, torch.ones(16), BITS)


@pytest.mark.parametrize("outlier", [1.0, 5.0, 50.0])
@pytest.mark.parametrize("bits", [BITS, LayerBits(4, 8, WeightRange.MSE, RangeEstimator.L4)])
def test_the_choice_is_the_best_of_all_that_are_tried(outlier: float, bits: LayerBits) -> None:
    weight, samples, extremes = case(outlier, weight_outlier=4.0)
    found = least_error_scale(weight, extremes, samples, bits)
    tried = [torch.ones(16), *(channel_scale(weight, extremes, alpha) for alpha in ALPHAS)]
    least = min(error(weight, samples, scale, bits) for scale in tried)
    assert error(weight, samples, torch.ones(16) if found is None else found, bits) == pytest.approx(least, rel=1e-4)


def test_what_every_scale_makes_worse_stays_as_it_is() -> None:
    """Inputs on a grid and weights on one: unscaled they are exact, and no scale can be better."""
    weight = torch.tensor([[-8.0, 7.0, 3.0, 1.0], [7.0, -8.0, 2.0, 5.0]])
    x = torch.tensor([[0.0, 15.0, 4.0, 9.0], [15.0, 3.0, 1.0, 2.0]])
    bits = LayerBits(4, 4, WeightRange.MIN_MAX, RangeEstimator.MIN_MAX)
    assert least_error_scale(weight, x.amax(0), [x], bits) is None
