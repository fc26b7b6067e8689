"""Round-to-nearest over a whole denoiser."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline

from bitbrush.network.layers import layer_specs
from bitbrush.network.unet import UNET
from bitbrush.numerics.limits import WeightRange
from bitbrush.rounding.nearest import round_all_to_nearest


@pytest.mark.parametrize("bits", [3, 8])
def test_every_weight_goes_to_a_neighbour(tiny_pipe: StableDiffusionPipeline, bits: int) -> None:
    unet = tiny_pipe.unet
    before = copy.deepcopy(unet.state_dict())
    specs = layer_specs(unet, UNET, weight_bits=bits)
    rounded = round_all_to_nearest(unet, specs, WeightRange.MIN_MAX)
    assert list(rounded) == [spec.name for spec in specs]
    for spec in specs:
        weight, qparams = rounded[spec.name].weight, rounded[spec.name].weight.qparams
        assert qparams.bits == spec.weight_bits
        assert weight.w_q.shape == spec.shape
        assert int(weight.w_q.max()) <= qparams.qmax
        error = (weight.dequantize() - before[f"{spec.name}.weight"]).abs().flatten(1).amax(1)
        # Half a step, and another half where the rounded zero point moved the range.
        assert (error <= 1.001 * qparams.scale).all()
        bias = before.get(f"{spec.name}.bias")
        assert torch.equal(rounded[spec.name].bias, bias) if bias is not None else rounded[spec.name].bias is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_the_bias_is_a_copy(tiny_pipe: StableDiffusionPipeline) -> None:
    specs = layer_specs(tiny_pipe.unet, UNET, weight_bits=4)[:1]
    bias = round_all_to_nearest(tiny_pipe.unet, specs, WeightRange.MSE)["conv_in"].bias
    before = bias.clone()
    with torch.no_grad():
        tiny_pipe.unet.conv_in.bias.add_(1)
    assert torch.equal(bias, before)
