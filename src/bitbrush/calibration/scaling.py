"""How much of an input's scale moves into the weights: the exponent with the least error of the layers that read it.

SmoothQuant (arXiv 2211.10438) takes one exponent for all; AWQ (arXiv 2306.00978, section 3.2) searches it on a grid for
each, by the output's error with quantized weights. Here weights and activations are quantized, both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitbrush.network.smoothing import channel_scale
from bitbrush.numerics.affine import fake_quantize
from bitbrush.numerics.histogram import Histogram
from bitbrush.numerics.limits import RangeEstimator, WeightRange
from bitbrush.numerics.ranges import find_qparams
from bitbrush.numerics.weights import round_to_nearest, weight_grid

ALPHAS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class LayerBits:
    """With how many bits, and on which ranges, a layer's weight and input are to be quantized."""

    weights: int
    activations: int
    weight_range: WeightRange
    activation_range: RangeEstimator


def least_error_scale(weight: Tensor, extremes: Tensor, samples: Sequence[Tensor], bits: LayerBits) -> Tensor | None:
    """The scale of each channel, (C_in,), with the least ``sum |W x - Q(W diag(s)) Q(x / s)|^2``; None for no scaling.

    Among :func:`~bitbrush.network.smoothing.channel_scale` of eleven exponents from 0 to 1, and no scaling. ``weight``
    (C_out, C_in), rounded to nearest; ``samples``: of each of some steps (tokens, C_in), each with a grid of its own.
    """
    best, least = None, _error(weight, samples, torch.ones_like(extremes), bits)
    for alpha in ALPHAS:
        scale = channel_scale(weight, extremes, alpha)
        error = _error(weight, samples, scale, bits)
        if error < least:
            best, least = scale, error
    return best


def _error(weight: Tensor, samples: Sequence[Tensor], scale: Tensor, bits: LayerBits) -> float:
    scaled = weight * scale
    w_hat = round_to_nearest(scaled, weight_grid(scaled, bits.weights, bits.weight_range)).dequantize()
    inputs = [x / scale for x in samples]
    grids = find_qparams(bits.activation_range, [Histogram.of(x) for x in inputs], [bits.activations] * len(inputs))
    errors = (
        F.linear(fake_quantize(x, grid), w_hat).sub_(F.linear(wanted, weight)).square().sum()
        for wanted, x, grid in zip(samples, inputs, grids, strict=True)
    )
    return float(torch.stack(list(errors)).sum())
