"""A grown denoiser computes what the one it is grown from does."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.training.conftest import TINY_DENOISER, TINY_DENOISER_XL, TINY_VAE
from training.emoji.denoiser import build_denoiser
from training.emoji.growth import fit_text_map, grow_
from training.emoji.vae import build_vae

OLD_WIDTH, NEW_WIDTH = 6, 10


def old_denoiser() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_denoiser(TINY_DENOISER, build_vae(TINY_VAE), OLD_WIDTH)


def new_denoiser() -> UNet2DConditionModel:
    architecture = {
        "transformer_layers_per_block": (1, 1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 3,
    }
    return build_denoiser(TINY_DENOISER_XL.denoiser, build_vae(TINY_VAE), NEW_WIDTH, **architecture)


def test_where_the_text_maps_exactly_the_grown_denoiser_computes_the_same() -> None:
    old, new = old_denoiser(), new_denoiser()
    text_map = torch.randn(NEW_WIDTH, OLD_WIDTH)
    grow_(new, old, text_map)
    latents, text = torch.randn(2, 4, 16, 16), torch.randn(2, 5, NEW_WIDTH)
    added = {"text_embeds": torch.randn(2, 3), "time_ids": torch.randint(0, 64, (2, 6))}
    with torch.no_grad():
        expected = old(latents, 500, encoder_hidden_states=text @ text_map).sample
        grown = new(latents, 500, encoder_hidden_states=text, added_cond_kwargs=added).sample
    torch.testing.assert_close(grown, expected, rtol=1e-4, atol=1e-5)


def test_a_text_map_that_exists_is_found() -> None:
    new, text_map = torch.randn(100, NEW_WIDTH), torch.randn(NEW_WIDTH, OLD_WIDTH)
    torch.testing.assert_close(fit_text_map(new, new @ text_map), text_map, rtol=1e-4, atol=1e-5)


def test_another_width_is_refused() -> None:
    wider = replace(TINY_DENOISER, widths=(16, 8, 8))
    with pytest.raises(ValueError, match=r"conv_in.weight is \(8, 4, 3, 3\) in the trained denoiser, \(16, 4, 3, 3\)"):
        grow_(build_denoiser(wider, build_vae(TINY_VAE), NEW_WIDTH), old_denoiser(), torch.randn(NEW_WIDTH, OLD_WIDTH))
