"""What tests of stages share: latents of a small pipeline, and a runtime that computes an artifact in integers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import bitbrush
from bitbrush.artifact.store import read_layers
from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.runtime.lowered import lowered_of
from tests.artifact.pipelines import PROMPTS

RUNTIMES = [
    ("onednn", "float32"),
    ("onednn", "bfloat16"),
]


def latents(pipe: StableDiffusionPipeline) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    y: Tensor = pipe("a cat", num_inference_steps=2, generator=generator, output_type="latent").images
    return y.float()


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10((b.max() - b.min()) ** 2 / (a - b).square().mean()))


def assert_within_quantization_error(found: Tensor, reference: Tensor, full: Tensor) -> None:
    """Two runs of the same integers: at most as far apart as if each had rounded every activation by itself.

    Sums in another order round some activations the other way, and these others, differently on every processor.
    Independent errors of the size of the reference's add up to twice its squared distance from full precision.
    test_stages_in_integers compares the layers by themselves, which agree closely.
    """
    assert (found - reference).square().mean() < 2 * (reference - full).square().mean()


def computed_in_integers(folder: Path, runtime: str, dtype: str, full: Tensor) -> Any:
    """The pipeline, none of whose layers falls back, and which makes the reference's latents.

    ``full``: those of full precision. With bfloat16 between the layers they agree to 30 dB.
    """
    try:
        pipe = bitbrush.load(folder, runtime=runtime, dtype=dtype)
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    lowered = lowered_of(pipe.unet)
    assert lowered is not None
    assert not [one for one in lowered.executions if one.fallback]
    found, reference = latents(pipe), latents(bitbrush.load(folder, runtime="reference"))
    if dtype == "float32":
        assert_within_quantization_error(found, reference, full)
    else:
        assert psnr(found, reference) > 30
    return pipe


def assert_recalibrates(folder: Path, tmp_path: Path) -> None:
    """On its own integers, and what comes of it is saved and loaded."""
    again = bitbrush.recalibrate(folder, {"activations": 6}, PROMPTS)
    before = {layer.name: layer for layer in read_layers(folder)}
    assert {layer.name for layer in again.outcome.layers} == set(before)
    for layer in again.outcome.layers:
        assert torch.equal(layer.weight.w_q, before[layer.name].weight.w_q)
    saved = bitbrush.save(again, tmp_path / "again")
    assert torch.equal(latents(bitbrush.load(saved, runtime="reference")), latents(again.pipeline()))
