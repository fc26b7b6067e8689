"""Ranges found at run time: nothing is calibrated, and every token and picture has its own, in every runtime."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import bitbrush
from bitbrush import Quantization
from bitbrush.artifact.store import read_layers
from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.runtime.lowered import lowered_of
from bitbrush.timeline.schedule import DynamicRanges
from tests.artifact.in_integers import assert_within_quantization_error, latents, psnr

PROMPTS = ("a red cat", "two blue dogs on the left")
SMALL = {"rounding": "nearest", "steps": 2, "num_prompts": 2, "weights": 8}


@pytest.fixture(scope="module")
def made(_one_tiny_pipe: StableDiffusionPipeline) -> Quantization:
    return bitbrush.quantize(copy.deepcopy(_one_tiny_pipe), bitbrush.METHODS["dynamic"].recipe(SMALL), PROMPTS)


@pytest.fixture(scope="module")
def folder(made: Quantization, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bitbrush.save(made, tmp_path_factory.mktemp("dynamic") / "artifact", base_model="someone/tiny")


def test_nothing_is_calibrated(made: Quantization) -> None:
    assert list(made.costs) == ["rounding"]
    bits = {layer.name: layer.activations for layer in made.outcome.layers}
    high_precision_names = {spec.name for spec in made.outcome.specs if spec.high_precision}
    assert high_precision_names
    assert all(bits[name] == DynamicRanges(16 if name in high_precision_names else 8) for name in bits)
    assert made.average_activation_bits == 8


def test_what_is_saved_is_loaded(made: Quantization, folder: Path) -> None:
    here = latents(made.pipeline())
    assert torch.equal(latents(bitbrush.load(folder, runtime="reference")), here)
    bitbrush.register()
    assert torch.equal(latents(StableDiffusionPipeline.from_pretrained(folder)), here)
    assert [one.activations for one in read_layers(folder)] == [one.activations for one in made.outcome.layers]
    assert psnr(here, latents(made.source)) > 30
    again = bitbrush.recalibrate(folder, {"activations": 6}, PROMPTS)
    assert {one.activations for one in again.outcome.layers} == {DynamicRanges(6), DynamicRanges(16)}


def test_onednn_runs_it_in_integers(made: Quantization, folder: Path) -> None:
    try:
        pipe = bitbrush.load(folder, runtime="onednn", dtype="float32")
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    lowered = lowered_of(pipe.unet)
    assert lowered is not None
    assert {one.fallback for one in lowered.executions} == {None}
    reference = latents(bitbrush.load(folder, runtime="reference"))
    assert_within_quantization_error(latents(pipe), reference, latents(made.source))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"relax": "0.5:1@10"}, "relax is 0.5:1@10, but dynamic has the same bits at all steps; use pcr or one-shot"),
        ({"activation_range": "l4"}, "activation_range is l4, but dynamic takes the extremes of each input"),
    ],
)
def test_what_needs_calibrated_ranges_is_refused(
    tiny_pipe: StableDiffusionPipeline, keys: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bitbrush.quantize(tiny_pipe, bitbrush.METHODS["dynamic"].recipe({**SMALL, **keys}), PROMPTS)
