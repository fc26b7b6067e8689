"""The average bits of all products, by hand for two layers, and of a whole quantization."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

import bitbrush
from bitbrush.methods.recipe import Recipe
from bitbrush.network.products import counting_products

PROMPTS = ("a red cat", "two blue dogs")


def test_multiplications_are_those_of_every_output_element() -> None:
    network = nn.ModuleDict({"conv": nn.Conv2d(3, 5, 3, padding=1), "linear": nn.Linear(7, 2)})
    products = dict.fromkeys(("conv", "linear"), 0)
    with counting_products(network, products):
        network["conv"](torch.zeros(2, 3, 4, 6))
        network["conv"](torch.zeros(1, 3, 4, 6))
        network["linear"](torch.zeros(9, 7))
    assert products == {"conv": 3 * (4 * 6) * 5 * (3 * 3 * 3), "linear": 9 * 7 * 2}


def test_layers_next_to_the_latents_count_with_their_own_bits(tiny_pipe: StableDiffusionPipeline) -> None:
    recipe = Recipe(method="pcr", weights=4, activations=6, relax="0.5:1.0@8", num_prompts=2, steps=4, scheduler="ddim")
    made = bitbrush.quantize(tiny_pipe, recipe, PROMPTS)
    bits = made.outcome.product_bits
    assert bits is not None
    products = dict.fromkeys((layer.name for layer in made.outcome.layers), 0)
    unet, size = made.source.unet, made.source.unet.config.sample_size
    with torch.no_grad(), counting_products(unet, products):
        text = torch.zeros(2, tiny_pipe.tokenizer.model_max_length, unet.config.cross_attention_dim)
        unet(torch.zeros(2, unet.config.in_channels, size, size), 500, text)
    assert sum(products.values()) > 0
    share = {name: count / sum(products.values()) for name, count in products.items()}
    edges = {spec.name for spec in made.outcome.specs if spec.high_precision}
    assert 0 < sum(share[name] for name in edges) < 1
    assert bits.activations == pytest.approx(sum(part * (16 if name in edges else 7) for name, part in share.items()))
    assert bits.weights == pytest.approx(sum(part * (8 if name in edges else 4) for name, part in share.items()))


def test_ranges_at_run_time_have_the_bits_of_the_recipe(tiny_pipe: StableDiffusionPipeline) -> None:
    made = bitbrush.quantize(
        tiny_pipe, method="dynamic", prompts=PROMPTS, weights=8, activations=8, num_prompts=2, steps=2
    )
    bits = made.outcome.product_bits
    assert bits is not None
    assert bits.weights == pytest.approx(8)
    assert 8 < bits.activations < 16
