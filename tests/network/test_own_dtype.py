"""Networks in bfloat16 behind a float32 interface: VAEs and text encoders that are not quantized."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitbrush.network.own_dtype import (
    compute_in_bfloat16,
    is_autoencoder,
    is_text_encoder,
    refuse_overflow_,
    set_channels_last_,
)
from tests.artifact.pipelines import clip, t5, vae

LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(2, 12).view(2, 5)


def distance(y: Tensor, expected: Tensor) -> float:
    return float((y.float() - expected).norm() / expected.norm())


def autoencoder() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return vae()


@torch.no_grad()
def test_a_vae_in_bfloat16_takes_and_gives_any_type() -> None:
    network = autoencoder()
    expected = network.decode(LATENTS).sample
    compute_in_bfloat16(network)
    assert {parameter.dtype for parameter in network.decoder.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in network.post_quant_conv.parameters()} == {torch.float32}
    assert network.dtype == torch.float32
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        image = network.decode(LATENTS.to(dtype)).sample
        assert image.dtype == dtype
        assert 0 < distance(image, expected) < 0.03


@torch.no_grad()
def test_its_tiles_slices_and_encoder_work() -> None:
    network = autoencoder()
    compute_in_bfloat16(network)
    expected = network.decode(LATENTS).sample
    network.enable_slicing()
    assert distance(network.decode(LATENTS).sample, expected) < 0.02
    network.enable_tiling()
    network.tile_latent_min_size, network.tile_sample_min_size = 4, 8
    assert network.decode(LATENTS).sample.shape == expected.shape
    assert network.encode(expected).latent_dist.mean.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("make", [clip, lambda: clip(projection=True), lambda: t5(16)["model"]])
def test_a_text_encoder_in_bfloat16_gives_float32(make: Callable[[], nn.Module]) -> None:
    network: Any = make()
    expected = network(TOKENS, output_hidden_states=True)
    compute_in_bfloat16(network)
    given = network(TOKENS, output_hidden_states=True)
    assert network.dtype == torch.float32
    for y, right in zip(given.hidden_states, expected.hidden_states, strict=True):
        assert y.dtype == torch.float32
        assert 0 < distance(y, right) < 0.03


@torch.no_grad()
def test_copies_and_casts_compute() -> None:
    network = autoencoder()
    compute_in_bfloat16(network)
    expected = network.decode(LATENTS).sample
    assert torch.equal(copy.deepcopy(network).decode(LATENTS).sample, expected)
    exact = autoencoder().decode(LATENTS).sample
    assert distance(network.to(torch.float32).decode(LATENTS).sample, exact) < 0.01


@torch.no_grad()
def test_channels_last_changes_no_image_beyond_rounding() -> None:
    network = autoencoder()
    expected = network.decode(LATENTS).sample
    set_channels_last_(network)
    assert network.decoder.mid_block.resnets[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert distance(network.decode(LATENTS).sample, expected) < 1e-5


@torch.no_grad()
def test_a_vae_that_overflows_float16_is_named() -> None:
    network = autoencoder()
    refuse_overflow_(network)
    network.half()
    assert network.decode(LATENTS.half()).sample.isfinite().all()
    network.decoder.conv_in.weight.mul_(1e6)
    with pytest.raises(ValueError, match="VAE computes in float16"):
        network.decode(LATENTS.half())
    network.float()
    network.decode(LATENTS)


def test_which_networks_are_meant() -> None:
    assert is_autoencoder(autoencoder())
    assert not is_autoencoder(clip())
    assert [is_text_encoder(name) for name in ("text_encoder", "text_encoder_3", "image_encoder", "unet")] == [
        True,
        True,
        False,
        False,
    ]
