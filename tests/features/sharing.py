"""Rows: saving, loading and sharing by diffusers' own methods. Images stay as they are."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

import bitbrush
from bitbrush import BitbrushConfig
from bitbrush.runtime.lowered import lowered_of
from bitbrush.sources.checkpoint_type import in_type
from tests.features.models import call
from tests.features.row import Section

SHARING = Section(
    "Saving and sharing",
    "What is written loads to the same images on the same runtime ([how](sharing.md), [options](loading.md)).",
)
row = partial(SHARING.row, same=0.0, emulated=False)
REFUSED = "an artifact has its weights once"


def _runtime(pipe: Any) -> str:
    lowered = lowered_of(pipe.unet)
    assert lowered is not None
    return lowered.runtime


def _load(place: Path, pipe: Any) -> Any:
    return bitbrush.load(place, runtime=_runtime(pipe), dtype="float32")


@row("`pipe.save_pretrained`, `bitbrush.load`")
def _saved(pipe: Any) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(Path(folder, "artifact"))
        return call(_load(Path(folder, "artifact"), pipe))


@row("one `.safetensors` file")
def _single_file(pipe: Any) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(Path(folder, "x.safetensors"))
        return call(_load(Path(folder, "x.safetensors"), pipe))


@row("`DiffusionPipeline.from_pretrained`")
def _from_pretrained(pipe: Any) -> Tensor:
    config = diffusers.PipelineQuantizationConfig(quant_mapping={"unet": BitbrushConfig(runtime=_runtime(pipe))})
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(Path(folder, "artifact"))
        place, dtype = Path(folder, "artifact"), in_type(torch.float32)
        return call(diffusers.DiffusionPipeline.from_pretrained(place, quantization_config=config, **dtype))


@row("`unet.save_pretrained`, `UNet2DConditionModel.from_pretrained`")
def _denoiser(pipe: Any) -> Tensor:
    config = BitbrushConfig(runtime=_runtime(pipe))
    with tempfile.TemporaryDirectory() as folder:
        pipe.unet.save_pretrained(Path(folder, "unet"))
        pipe.unet = diffusers.UNet2DConditionModel.from_pretrained(
            Path(folder, "unet"), quantization_config=config, torch_dtype=torch.float32
        )
    return call(pipe)
