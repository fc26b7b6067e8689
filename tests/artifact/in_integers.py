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


def computed_in_integers(folder: Path, runtime: str, dtype: str, *, decibels: float = 50) -> Any:
    """The pipeline, none of whose layers falls back, and which makes the reference's picture: to 30 dB in bfloat16."""
    try:
        pipe = bitbrush.load(folder, runtime=runtime, dtype=dtype)
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    lowered = lowered_of(pipe.unet)
    assert lowered is not None
    assert not [one for one in lowered.executions if one.fallback]
    exact = latents(bitbrush.load(folder, runtime="reference"))
    # Of layers by themselves test_stages_in_integers asks for more.
    assert psnr(latents(pipe), exact) > (decibels if dtype == "float32" else 30)
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
