"""An artifact whose output is corrected: the same on every way to run it, and only where it can be measured."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tests.artifact.conftest import PROMPTS
from torch import Tensor

import bitbrush
from bitbrush import Quantization
from bitbrush.artifact.card import quantize_command
from bitbrush.runtime.interface import RuntimeUnavailable

KEYS = {"steps": 3, "num_prompts": 2, "rounding": "nearest", "activations": 4, "output_means": "correct"}
T = 501.0


@pytest.fixture
def corrected(tiny_pipe: StableDiffusionPipeline) -> Quantization:
    return bitbrush.quantize(tiny_pipe, bitbrush.METHODS["pcr"].recipe(KEYS), PROMPTS)


@pytest.fixture
def folder(corrected: Quantization, tmp_path: Path) -> Path:
    return bitbrush.save(corrected, tmp_path / "artifact", base_model="tiny")


@torch.no_grad()
def output(pipe: StableDiffusionPipeline) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    y: Tensor = pipe.unet(latents, T, text, return_dict=False)[0]
    return y


def test_what_is_loaded_corrects_as_what_was_made(corrected: Quantization, folder: Path) -> None:
    expected = output(corrected.pipeline())
    assert torch.equal(output(bitbrush.load(folder, runtime="reference")), expected)
    bitbrush.register()
    assert torch.equal(output(StableDiffusionPipeline.from_pretrained(folder)), expected)


@pytest.mark.parametrize("runtime", ["reference", "onednn"])
def test_every_runtime_takes_the_means_off(
    corrected: Quantization, folder: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    correction = corrected.outcome.correction
    assert correction is not None
    try:
        with_means = output(bitbrush.load(folder, runtime=runtime, dtype="float32"))
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.setattr("bitbrush.artifact.denoiser.correct_as_stored", lambda *_: None)
    without = output(bitbrush.load(folder, runtime=runtime, dtype="float32"))
    means = torch.tensor(correction.means[min(range(3), key=lambda i: abs(correction.timesteps[i] - T))])
    assert means.abs().min() > 1e-4
    assert torch.allclose(without - with_means, means.view(-1, 1, 1).expand_as(without), atol=1e-6)


def test_without_full_precision_they_are_not_measured_anew(folder: Path) -> None:
    with pytest.raises(ValueError, match="recalibrate with output_means keep"):
        bitbrush.recalibrate(folder, {"steps": 2}, PROMPTS)
    again = bitbrush.recalibrate(folder, {"steps": 2, "output_means": "keep"}, PROMPTS)
    assert again.outcome.correction is None
    saved = bitbrush.save(again, folder.with_name("again"))
    assert "--output-means keep" in quantize_command(bitbrush.read_manifest(saved)).splitlines()[1]


@pytest.mark.parametrize("method", ["rtn", "one-shot", "smoothquant"])
def test_methods_that_run_no_quantized_denoiser_refuse(tiny_pipe: StableDiffusionPipeline, method: str) -> None:
    recipe = bitbrush.METHODS[method].recipe({**KEYS, "rounding": "nearest"})
    with pytest.raises(ValueError, match=f"output_means is correct, but {method} never runs"):
        bitbrush.quantize(tiny_pipe, recipe, PROMPTS)
