"""Quantizing all but the start token of the text: made, saved, loaded, run and recalibrated."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

import bitbrush
from bitbrush import Quantization
from bitbrush.network.unet import UNET
from bitbrush.runtime.interface import RuntimeUnavailable
from tests.artifact.conftest import PROMPTS

KEYS = {"steps": 2, "num_prompts": 2, "rounding": "nearest", "first_token": "known", "exclude": ["mid_block.*"]}
KEY = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def known(tiny_pipe: StableDiffusionPipeline) -> Quantization:
    return bitbrush.quantize(tiny_pipe, bitbrush.METHODS["pcr"].recipe(KEYS), PROMPTS)


@pytest.fixture
def folder(known: Quantization, tmp_path: Path) -> Path:
    return bitbrush.save(known, tmp_path / "artifact", base_model="tiny")


@torch.no_grad()
def keys(pipe: StableDiffusionPipeline) -> tuple[Tensor, Tensor]:
    """What the layer is given, and what it makes of it, in a call of the denoiser."""
    text = pipe.encode_prompt(["a house"], "cpu", 1, False)[0]
    found: list[Tensor] = []
    handle = pipe.unet.get_submodule(KEY).register_forward_hook(lambda _, __, y: found.append(y))
    pipe.unet(torch.zeros(1, 4, 8, 8), 501, text)
    handle.remove()
    return text, found[0].float()


def test_layers_that_read_the_text_know_it_and_no_others(known: Quantization) -> None:
    of_the_text = {name for name in UNET.text_layers(known.source.unet) if not name.startswith("mid_block.")}
    assert {layer.name for layer in known.outcome.layers if layer.first is not None} == of_the_text
    assert len(of_the_text) >= 4
    assert known.costs["first_token"].denoiser_calls_per_batch == 1


@torch.no_grad()
def test_the_start_token_is_full_precisions_and_ranges_are_the_words(
    tiny_pipe: StableDiffusionPipeline, known: Quantization
) -> None:
    text, y = keys(known.pipeline())
    full: nn.Module = tiny_pipe.unet.get_submodule(KEY)
    assert torch.allclose(y[:, 0], full(text)[:, 0], atol=1e-6)
    assert not torch.allclose(y[:, 1:], full(text)[:, 1:], atol=1e-4)


@pytest.mark.parametrize("runtime", ["reference", "onednn"])
def test_loaded_layers_know_it(known: Quantization, folder: Path, runtime: str) -> None:
    _, expected = keys(known.pipeline())
    try:
        pipe = bitbrush.load(folder, runtime=runtime, dtype="float32")
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    pipe.unet(torch.zeros(1, 4, 8, 8), 501, torch.zeros(1, 3, 16))  # an empty text before it is no start token
    _, y = keys(pipe)
    assert torch.equal(y[:, 0], expected[:, 0])
    assert torch.allclose(y, expected, atol=1e-5)


def test_diffusers_loads_it(folder: Path) -> None:
    bitbrush.register()
    _, expected = keys(bitbrush.load(folder, runtime="reference"))
    assert torch.equal(keys(StableDiffusionPipeline.from_pretrained(folder))[1], expected)


def test_recalibrating_keeps_it(known: Quantization, folder: Path) -> None:
    again = bitbrush.recalibrate(folder, {"steps": 3}, PROMPTS)
    for a, b in zip(known.outcome.layers, again.outcome.layers, strict=True):
        assert (a.first is None) is (b.first is None)
        if a.first is not None and b.first is not None:
            assert torch.equal(a.first.output, b.first.output)
    assert "first_token" not in again.costs


def test_weights_of_another_quantization_serve_with_and_without(
    tiny_pipe: StableDiffusionPipeline, known: Quantization
) -> None:
    plain = bitbrush.METHODS["pcr"].recipe({**KEYS, "first_token": "quantized"})
    without = bitbrush.quantize(tiny_pipe, plain, PROMPTS, rounded=known.rounded)
    assert not any(layer.first for layer in without.outcome.layers)
    again = bitbrush.quantize(tiny_pipe, known.recipe, PROMPTS, rounded=without.rounded)
    assert [layer.activations for layer in again.outcome.layers] == [
        layer.activations for layer in known.outcome.layers
    ]


def test_a_denoiser_that_reads_no_text_so_refuses(tiny_pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(ValueError, match="first_token is known, but a denoiser of the family generic has no layers"):
        bitbrush.quantize(tiny_pipe, bitbrush.METHODS["pcr"].recipe(KEYS), PROMPTS, generic=True)
