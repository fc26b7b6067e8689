"""Every layer of real denoisers on what it is really given: integer sums exactly, outputs to float32's rounding."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import bitbrush
from bitbrush.network.layers import LayerSpec, QuantizedLayer, layer_specs
from bitbrush.network.unet import UNET
from bitbrush.numerics.affine import QParams, quantize
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import (
    QuantizedWeight,
    WeightQParams,
    round_to_nearest,
    weight_qparams,
)
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.runtime.tools import best_tools
from bitbrush.timeline.schedule import ActivationSchedule
from tests.runtime.conftest import Alone, assert_same_sums

EXACT_IN_FLOAT = 2**24


pytestmark = pytest.mark.usefixtures("exact_products")


def emoji_sd() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    unet = bitbrush.load_full_precision("emoji-sd").unet
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    return (
        unet,
        torch.randn(2, unet.config.in_channels, size, size, generator=generator),
        torch.randn(2, 24, width, generator=generator),
    )


def block_of_sd15() -> tuple[nn.Module, Tensor, Tensor]:
    """The outermost blocks in Stable Diffusion 1.5's widths, downwards and upwards, with the text's."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(320,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=768,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    return unet, torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 768, generator=generator)


@pytest.fixture(scope="module", params=[emoji_sd, block_of_sd15], ids=lambda make: make.__name__)
def inputs(request: pytest.FixtureRequest) -> dict[str, tuple[LayerSpec, nn.Module, Tensor]]:
    """Of every layer: what is quantized of it, itself, and what it was given in one call."""
    make: Callable[[], tuple[nn.Module, Tensor, Tensor]] = request.param
    denoiser, latents, text = make()
    given: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, args: given.__setitem__(name, args[0].detach())

    specs = layer_specs(denoiser, UNET, weight_bits=4)
    handles = [denoiser.get_submodule(spec.name).register_forward_pre_hook(watch(spec.name)) for spec in specs]
    with torch.no_grad():
        denoiser(latents, 500, text)
    for handle in handles:
        handle.remove()
    assert len(given) == len(specs) > 20
    return {spec.name: (spec, denoiser.get_submodule(spec.name), given[spec.name]) for spec in specs}


def layers(inputs: dict[str, Any], bits: int) -> Iterator[tuple[nn.Module, Tensor, QuantizedLayer]]:
    for spec, module, x in inputs.values():
        qparams = QParams.from_range(float(x.min()), float(x.max()), bits)
        weight = round_to_nearest(
            module.weight.data, weight_qparams(module.weight.data, spec.weight_bits, WeightRange.MIN_MAX)
        )
        bias = None if module.bias is None else module.bias.data
        yield module, x, QuantizedLayer("layer", weight, bias, ActivationSchedule.static(qparams))


@pytest.mark.parametrize("bits", [8, 10])
@torch.no_grad()
def test_every_layer_equals_the_reference(inputs: dict[str, Any], bits: int) -> None:
    for module, x, layer in layers(inputs, bits):
        exact, ours = Alone(module), Alone(module)
        ReferenceRuntime().lower(exact, [layer])
        (execution,) = OneDnnRuntime(best_tools(), torch.float32).lower(ours, [layer])
        assert execution.fallback is None
        assert_same_sums(ours(x, 1.0), exact(x, 1.0), layer.weight.w_q)


@torch.no_grad()
def test_every_sum_equals_that_of_whole_numbers(inputs: dict[str, Any]) -> None:
    """With scales of 1 the output is the sum itself, which float32 holds exactly up to 2^24."""
    for module, x, layer in layers(inputs, 8):
        qparams, count = layer.activations.qparams[0], len(layer.weight.w_q)
        whole = WeightQParams(torch.ones(count), layer.weight.qparams.zero_point, layer.weight.qparams.bits)
        unscaled = QParams(1.0, qparams.zero_point, 8)
        own = QuantizedLayer(
            "layer", QuantizedWeight(layer.weight.w_q, whole), None, ActivationSchedule.static(unscaled)
        )
        ours = Alone(module)
        OneDnnRuntime(best_tools(), torch.float32).lower(ours, [own])
        integers = quantize(x, qparams) - qparams.zero_point
        sums = _sums(module, integers.double(), layer.weight)
        assert sums.abs().max() < EXACT_IN_FLOAT
        assert torch.equal(ours(integers.float(), 1.0).double(), sums)


def _sums(module: nn.Module, x: Tensor, weight: QuantizedWeight) -> Tensor:
    zero_point = weight.qparams.zero_point.view(-1, *(1,) * (weight.w_q.dim() - 1))
    w = weight.w_q.double() - zero_point.double()  # float64 holds these sums exactly, and has fast convolutions
    if isinstance(module, nn.Conv2d):
        return F.conv2d(x, w, None, module.stride, module.padding, module.dilation, module.groups)
    return F.linear(x, w)
