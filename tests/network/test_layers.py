"""Which layers are quantized: all, once, the edges at 8 bits, none left out without a reason."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from bitbrush.network.layers import layer_specs, set_weight
from bitbrush.network.unet import UNET

ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn2"


def test_every_conv_and_linear_exactly_once(tiny_pipe: StableDiffusionPipeline) -> None:
    unet = tiny_pipe.unet
    specs = layer_specs(unet, UNET, weight_bits=4)
    expected = [name for name, module in unet.named_modules() if type(module).__name__ in {"Conv2d", "Linear"}]
    assert [spec.name for spec in specs] == expected
    # Whatever has a matrix of weights is there: nothing hides behind another class.
    matrices = {name.removesuffix(".weight") for name, weight in unet.named_parameters() if weight.dim() > 1}
    assert {spec.name for spec in specs} == matrices
    for spec in specs:
        layer = unet.get_submodule(spec.name)
        assert spec.kind == {"Conv2d": "conv", "Linear": "linear"}[type(layer).__name__]
        assert spec.shape == tuple(layer.weight.shape)
        assert spec.excluded is None


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_edges_have_8_bit_weights(tiny_pipe: StableDiffusionPipeline, bits: int) -> None:
    specs = layer_specs(tiny_pipe.unet, UNET, weight_bits=bits)
    assert [spec.name for spec in specs if spec.high_precision] == sorted(
        UNET.high_precision_layers(tiny_pipe.unet), key=[spec.name for spec in specs].index
    )
    assert {spec.weight_bits for spec in specs if spec.high_precision} == {8}
    assert {spec.weight_bits for spec in specs if not spec.high_precision} == {bits}


def test_excluded_layers_stay_listed_with_the_reason(tiny_pipe: StableDiffusionPipeline) -> None:
    specs = layer_specs(tiny_pipe.unet, UNET, weight_bits=4, exclude=("*.attn2.to_?", "conv_in"))
    reasons = {spec.name: spec.excluded for spec in specs if spec.excluded is not None}
    crosses = [spec.name for spec in specs if ".attn2.to_" in spec.name and not spec.name.endswith(".to_out.0")]
    assert reasons == dict.fromkeys(crosses, "recipe: exclude *.attn2.to_?") | {"conv_in": "recipe: exclude conv_in"}
    assert f"{ATTENTION}.to_k" in crosses
    assert len(specs) == len(layer_specs(tiny_pipe.unet, UNET, weight_bits=4))


@pytest.mark.parametrize("bits", [2, 4])
def test_fine_layers_are_treated_as_edges(tiny_pipe: StableDiffusionPipeline, bits: int) -> None:
    plain = layer_specs(tiny_pipe.unet, UNET, weight_bits=bits)
    specs = layer_specs(tiny_pipe.unet, UNET, weight_bits=bits, high_precision=("*.time_emb_proj", "conv_in"))
    changed = [b.name for a, b in zip(plain, specs, strict=True) if a != b]
    assert changed == [spec.name for spec in specs if spec.name.endswith(".time_emb_proj")]
    assert len(changed) > 2
    assert all(spec.high_precision and spec.weight_bits == 8 for spec in specs if spec.name in changed)


def test_a_layer_that_is_excluded_and_of_high_precision_is_excluded(tiny_pipe: StableDiffusionPipeline) -> None:
    specs = layer_specs(
        tiny_pipe.unet, UNET, weight_bits=4, exclude=("*.time_emb_proj",), high_precision=("*.time_emb_proj",)
    )
    assert all(spec.excluded for spec in specs if spec.name.endswith(".time_emb_proj"))


def test_a_pattern_that_matches_nothing_is_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(ValueError, match=r"exclude pattern '\*\.attn3\.\*' matches none of the \d+ layers"):
        layer_specs(tiny_pipe.unet, UNET, weight_bits=4, exclude=("conv_in", "*.attn3.*"))
    with pytest.raises(ValueError, match=r"high_precision pattern 'conv' matches none"):
        layer_specs(tiny_pipe.unet, UNET, weight_bits=4, high_precision=("conv",))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_damaged_weights_are_named(tiny_pipe: StableDiffusionPipeline, value: float) -> None:
    with torch.no_grad():
        tiny_pipe.unet.get_submodule(f"{ATTENTION}.to_q").weight[:3, 1] = value
    with pytest.raises(ValueError, match=rf"3 of 256 weights of layer {ATTENTION}\.to_q are NaN or infinite"):
        layer_specs(tiny_pipe.unet, UNET, weight_bits=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_set_weight_keeps_the_layers_dtype(dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 2, dtype=dtype)
    weight, bias = torch.randn(2, 3, dtype=torch.float64), torch.randn(2)
    set_weight(layer, weight, bias)
    assert layer.weight.dtype == layer.bias.dtype == dtype
    assert torch.equal(layer.weight, weight.to(dtype))
    assert torch.equal(layer.bias, bias.to(dtype))
    assert isinstance(layer.weight, nn.Parameter)


def test_set_weight_without_a_bias() -> None:
    conv = nn.Conv2d(2, 3, 3, bias=False)
    set_weight(conv, torch.ones(3, 2, 3, 3), None)
    assert conv.bias is None
    assert conv.weight.eq(1).all()
    linear = nn.Linear(2, 2)
    kept = linear.bias.clone()
    set_weight(linear, torch.ones(2, 2), None)
    assert torch.equal(linear.bias, kept)


@pytest.mark.parametrize("exclude", [("*",), ("conv_*", "*_blocks.*", "mid_block.*", "time_embedding.*")])
def test_a_layer_must_be_left(tiny_pipe: StableDiffusionPipeline, exclude: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"exclude is '.*', and none of the \d+ layers is left to quantize"):
        layer_specs(tiny_pipe.unet, UNET, weight_bits=4, exclude=exclude)
