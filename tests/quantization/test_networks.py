"""Networks beside the denoiser: text encoders with integer weights, and the decoder of a VAE."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitbrush
from bitbrush import Quantization
from bitbrush.methods.recipe import Networks
from bitbrush.network.packed_weight import PackedEmbedding, PackedLayer
from bitbrush.quantization import text_encoders
from bitbrush.quantization.text_encoders import encoder_specs
from bitbrush.quantization.vae import decoder_specs, quantize_decoder
from bitbrush.session.progress import silent
from tests.artifact.pipelines import CASES, PROMPTS, pipeline

ALL = "denoiser,text_encoders,vae"
KEYS = {"steps": 2, "num_prompts": 2, "method": "dynamic"}


def quantized(name: str, **keys: Any) -> Quantization:
    case = CASES[name]
    arguments = {**KEYS, **case.keys, **keys}
    return bitbrush.quantize(pipeline(case), PROMPTS, arguments, inputs=case.inputs)


def distance(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).norm() / expected.norm())


def embeddings(encoder: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = encoder(tokens)[0]
    return result


TOKENS = torch.arange(2, 12).view(2, 5)


@pytest.mark.parametrize("name", ["sd1", "sdxl-turbo", "pixart", "sd3", "flux-schnell"])
def test_text_encoders_of_every_family_keep_their_embeddings(name: str) -> None:
    made = quantized(name, networks="denoiser,text_encoders")
    pipe = made.pipeline()
    encoders = {key: part for key, part in pipe.components.items() if key.startswith("text_encoder")}
    assert made.networks.keys() == encoders.keys()
    for key, encoder in encoders.items():
        linear = [module for module in encoder.modules() if isinstance(module, nn.Linear)]
        assert linear
        assert all(isinstance(module, PackedLayer) for module in linear)
        assert isinstance(encoder.get_input_embeddings(), PackedEmbedding)
        expected = embeddings(getattr(made.source, key), TOKENS)
        given = embeddings(encoder, TOKENS)
        assert given.dtype == torch.float32
        assert 0 < distance(given, expected) < 0.05


def test_the_denoiser_does_not_depend_on_the_others() -> None:
    plain, every = quantized("sd1"), quantized("sd1", networks=ALL)
    assert not plain.networks
    for layer, same in zip(plain.outcome.layers, every.outcome.layers, strict=True):
        assert torch.equal(layer.weight.w_q, same.weight.w_q)
    assert "networks" not in plain.recipe.to_dict()
    assert every.recipe.to_dict()["networks"] == ALL


def test_compensation_beats_nearest_at_four_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(**keys: Any) -> float:
        made = quantized("sd1", networks="denoiser,text_encoders", text_encoder_weights=3, **keys)
        encoder = made.pipeline().text_encoder
        tokens = made.source.tokenizer(list(PROMPTS), padding="max_length", return_tensors="pt").input_ids
        return distance(embeddings(encoder, tokens), embeddings(made.source.text_encoder, tokens))

    compensated = error()
    monkeypatch.setattr(text_encoders, "_hessians", lambda *_: {})
    assert compensated < 0.9 * error()


def test_layers_with_outlying_inputs_get_16_bits() -> None:
    case = CASES["sd1"]
    pipe = pipeline(case)
    layer: Any = pipe.text_encoder.get_submodule("encoder.layers.0.mlp.fc1")
    fc2: Any = pipe.text_encoder.get_submodule("encoder.layers.0.mlp.fc2")
    with torch.no_grad():
        layer.bias[0] = 2000.0  # one channel of the next layer's input hides the others
        fc2.weight[:, 0] = 0.0
    made = bitbrush.quantize(pipe, PROMPTS, {**KEYS, "networks": "denoiser,text_encoders"})
    wide = [spec.name for spec in made.networks["text_encoder"].specs if spec.high_precision]
    assert wide == ["encoder.layers.0.mlp.fc2"]
    bits = {one.name: one.activations.bits for one in made.networks["text_encoder"].layers}  # type: ignore[union-attr]
    assert bits["encoder.layers.0.mlp.fc2"] == 16
    assert bits["encoder.layers.0.mlp.fc1"] == 8


@torch.no_grad()
def test_a_decoder_keeps_its_images_tiled_and_sliced() -> None:
    made = quantized("sd1", networks="denoiser,vae")
    vae, own = made.pipeline().vae, made.source.vae
    layers = made.networks["vae"].layers
    bits = {layer.name: layer.schedule.qparams[0].bits for layer in layers}
    assert [name for name, count in bits.items() if count == 16] == ["decoder.conv_in", "decoder.conv_out"]
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) / own.config.scaling_factor
    expected = own.decode(latents).sample
    assert 0 < distance(vae.decode(latents).sample, expected) < 0.1
    for network in (vae, own):
        network.enable_slicing()
        network.enable_tiling()
        network.tile_latent_min_size, network.tile_sample_min_size = 4, 8
    assert distance(vae.decode(latents).sample, own.decode(latents).sample) < 0.1


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ("text_encoders", "it must name denoiser"),
        ("denoiser,unet", "it must name denoiser"),
        ("denoiser,vae,vae", "each once"),
        (7, "it must name denoiser"),
    ],
)
def test_what_networks_cannot_be_is_named(networks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bitbrush.Recipe(networks=networks)


def test_networks_are_a_list_or_a_text() -> None:
    everything = (Networks.DENOISER, Networks.TEXT_ENCODERS, Networks.VAE)
    assert bitbrush.Recipe(networks="vae, text_encoders,denoiser").networks == everything  # type: ignore[arg-type]
    assert bitbrush.Recipe(networks=["denoiser", "vae", "text_encoders"]).networks == everything  # type: ignore[arg-type]


def test_a_decoder_of_other_convolutions_is_refused() -> None:
    vae: Any = pipeline(CASES["sd1"]).vae
    vae.decoder.add_module("video", nn.Conv3d(4, 4, 3))
    with pytest.raises(ValueError, match=r"the decoder of vae \(AutoencoderKL\) has Conv3d layers"):
        decoder_specs("vae", vae)


def test_a_vae_beyond_float16_is_named() -> None:
    vae: Any = pipeline(CASES["sd1"]).vae
    with torch.no_grad():
        vae.decoder.mid_block.resnets[0].conv2.weight.mul_(1e7)
    with pytest.warns(UserWarning, match=r"activations of vae reach .* beyond float16's 65504"):
        quantize_decoder("vae", vae, [torch.ones(1, 4, 8, 8)], silent)


def test_text_encoders_that_are_not_there_are_named() -> None:
    pipe = pipeline(CASES["sd1"])
    pipe.text_encoder = None
    with pytest.raises(ValueError, match="networks has text_encoders, and StableDiffusionPipeline has none"):
        bitbrush.quantize(pipe, PROMPTS, {**KEYS, "networks": "denoiser,text_encoders"})


def test_an_encoder_without_linear_layers_is_named() -> None:
    with pytest.raises(ValueError, match=r"text_encoder_2 \(Sequential\) has no Linear layer"):
        encoder_specs("text_encoder_2", nn.Sequential(nn.ReLU()), 8)
