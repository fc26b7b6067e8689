"""Quantizing all but the start token of the text: made, saved, loaded, run and recalibrated."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

import bitbrush
from bitbrush import Quantization
from bitbrush.network.unet import UNET
from bitbrush.runtime.interface import RuntimeUnavailable
from tests.artifact.pipelines import PROMPTS

KEYS = {"steps": 2, "num_prompts": 2, "rounding": "nearest", "first_token": "known", "exclude": ["mid_block.*"]}
KEY = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def known(_one_tiny_pipe: StableDiffusionPipeline) -> Quantization:
    return bitbrush.quantize(copy.deepcopy(_one_tiny_pipe), bitbrush.METHODS["pcr"].recipe(KEYS), PROMPTS)


@pytest.fixture(scope="module")
def folder(known: Quantization, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bitbrush.save(known, tmp_path_factory.mktemp("known") / "artifact", base_model="tiny")


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
    assert again.costs["first_token"].denoiser_calls_per_batch == 0


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


AUTO = {**KEYS, "first_token": "auto"}


def with_outlying_start_token(pipe: StableDiffusionPipeline, factor: float) -> StableDiffusionPipeline:
    """Its text encoder as real CLIP ones are: a start token far out, the same in all texts."""

    def enlarge(_: nn.Module, __: tuple[Tensor], y: Tensor) -> Tensor:
        return torch.cat([factor * y[:, :1], y[:, 1:]], 1)

    encoder = pipe.text_encoder
    getattr(encoder, "text_model", encoder).final_layer_norm.register_forward_hook(enlarge)
    return pipe


def auto(pipe: StableDiffusionPipeline, **keys: object) -> Quantization:
    return bitbrush.quantize(pipe, bitbrush.METHODS["pcr"].recipe({**AUTO, **keys}), PROMPTS)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, False), (1.7, False), (2.5, True), (60.0, True)])
def test_auto_goes_by_how_far_out_the_start_token_is(
    tiny_pipe: StableDiffusionPipeline, factor: float, expected: bool
) -> None:
    made = auto(with_outlying_start_token(tiny_pipe, factor))
    assert any(layer.first for layer in made.outcome.layers) is expected
    assert made.outcome.start_token_ratio == pytest.approx(factor, rel=0.15)  # layer norms leave all about as large
    key = "quantized" if not expected else "known"
    same = bitbrush.quantize(tiny_pipe, made.recipe.updated({"first_token": key}), PROMPTS)
    for one, other in zip(made.outcome.layers, same.outcome.layers, strict=True):
        assert one.activations == other.activations


def text_error(made: Quantization, full: StableDiffusionPipeline) -> float:
    """Of the keys of the words, in parts of their mean square."""
    (_, found), (_, wanted) = keys(made.pipeline()), keys(full)
    return float((found - wanted)[:, 1:].square().mean() / wanted[:, 1:].square().mean())


def test_knowing_an_outlying_start_token_helps_the_words(tiny_pipe: StableDiffusionPipeline) -> None:
    pipe = with_outlying_start_token(tiny_pipe, 60.0)
    bits = {"activations": 4, "weights": 8, "relax": "none"}
    assert text_error(auto(pipe, **bits), pipe) < 0.1 * text_error(auto(pipe, **bits, first_token="quantized"), pipe)


def test_auto_is_recorded_and_recalibrated_as_it_was(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = auto(with_outlying_start_token(tiny_pipe, 60.0))
    folder = bitbrush.save(made, tmp_path / "artifact", base_model="tiny")  # whose encoder lacks the hook
    manifest = bitbrush.read_manifest(folder)
    assert manifest["recipe"]["first_token"] == "auto"
    assert manifest["plan"]["start_token_ratio"] == made.outcome.start_token_ratio
    again = bitbrush.recalibrate(folder, {"steps": 3}, PROMPTS)
    assert again.outcome.start_token_ratio == made.outcome.start_token_ratio
    assert [layer.first is None for layer in again.outcome.layers] == [
        layer.first is None for layer in made.outcome.layers
    ]


def test_auto_leaves_denoisers_without_a_start_token_alone(tiny_pipe: StableDiffusionPipeline) -> None:
    recipe = bitbrush.METHODS["pcr"].recipe(AUTO)
    made = bitbrush.quantize(tiny_pipe, recipe, PROMPTS, generic=True)
    assert made.outcome.start_token_ratio is None
    assert not any(layer.first for layer in made.outcome.layers)


@pytest.mark.parametrize("method", bitbrush.METHODS)
def test_it_is_part_of_our_methods_and_of_no_baseline(method: str) -> None:
    assert bitbrush.METHODS[method].recipe().first_token == ("auto" if method in ("pcr", "best") else "quantized")
