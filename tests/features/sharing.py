"""Rows: saving, loading and sharing by diffusers' own methods. Images stay as they are."""

import tempfile
from contextlib import ExitStack, chdir
from functools import partial
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers.utils import hub_utils
from torch import Tensor

import bitbrush
from bitbrush import BitbrushConfig
from bitbrush.artifact import save_pretrained
from bitbrush.runtime.lowered import lowered_of
from bitbrush.sources.checkpoint_type import in_type
from tests.features.models import call, full
from tests.features.row import RUNTIMES, Section

SHARING = Section(
    "Saving and sharing",
    "What is written loads to the same images on the same runtime ([how](sharing.md), [options](loading.md)).",
)
row = partial(SHARING.row, same=0.0, emulated=False)
WHOLE = "x.safetensors is an artifact, of a whole pipeline: bitbrush.load('x.safetensors') loads it"


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


@row("`StableDiffusionPipeline.from_single_file`")
def _from_single_file(pipe: Any) -> Tensor:
    config = diffusers.PipelineQuantizationConfig(quant_mapping={"unet": BitbrushConfig(runtime=_runtime(pipe))})
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(Path(folder, "x.safetensors"))
        place, dtype = Path(folder, "x.safetensors"), in_type(torch.float32)
        return call(diffusers.StableDiffusionPipeline.from_single_file(place, quantization_config=config, **dtype))


@row("`UNet2DConditionModel.from_single_file`", refused=dict.fromkeys(RUNTIMES, WHOLE))
def _network_of_file(pipe: Any) -> Tensor:
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        pipe.save_pretrained("x.safetensors")
        pipe.unet = diffusers.UNet2DConditionModel.from_single_file("x.safetensors")
    return call(pipe)


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


@row("`push_to_hub`", slow=True)
def _pushed(pipe: Any) -> Tensor:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as replaced:
        place, repository = Path(folder, "uploaded"), SimpleNamespace(repo_id="me/mine")
        for module in (save_pretrained, hub_utils):
            replaced.enter_context(mock.patch.object(module, "create_repo", return_value=repository))
        upload = mock.patch.object(hub_utils, "upload_folder", lambda **given: copytree(given["folder_path"], place))
        replaced.enter_context(upload)
        pipe.push_to_hub("me/mine")
        return call(_load(place, pipe))


@row("`from_pretrained(device_map='balanced')`", slow=True)
def _mapped(pipe: Any) -> Tensor:
    config = diffusers.PipelineQuantizationConfig(quant_mapping={"unet": BitbrushConfig(runtime=_runtime(pipe))})
    options = {"quantization_config": config, "device_map": "balanced", **in_type(torch.float32)}
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(Path(folder, "artifact"))
        return call(diffusers.DiffusionPipeline.from_pretrained(Path(folder, "artifact"), **options))


def quantized_while_loading(pipe: Any, method: str) -> Tensor:
    """Saves the pipeline in full precision, and quantizes it for the runtime of ``pipe`` while loading."""
    config = BitbrushConfig(runtime=_runtime(pipe), method=method, weights=8)
    mapping = diffusers.PipelineQuantizationConfig(quant_mapping={"unet": config})
    with tempfile.TemporaryDirectory() as folder:
        full("sd").save_pretrained(folder)
        return call(
            diffusers.DiffusionPipeline.from_pretrained(folder, quantization_config=mapping, **in_type(torch.float32))
        )


def quantized_in_memory(pipe: Any) -> Tensor:
    recipe = bitbrush.METHODS["dynamic"].recipe({"weights": 8, "rounding": "nearest", "steps": 3, "num_prompts": 1})
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "artifact")
        bitbrush.save(bitbrush.quantize(full("sd"), recipe, ["a cat"]), place, base_model="a/model")
        return call(_load(place, pipe))


@row("`quantization_config=` of method `dynamic`: quantized while loading", without=quantized_in_memory, slow=True)
def _dynamic(pipe: Any) -> Tensor:
    return quantized_while_loading(pipe, "dynamic")


PROMPTS = "method rtn needs calibration prompts for observation, and from_pretrained has none: give method='dynamic'"


@row("`quantization_config=` of methods with static ranges, as `rtn`", refused=dict.fromkeys(RUNTIMES, PROMPTS))
def _static(pipe: Any) -> Tensor:
    return quantized_while_loading(pipe, "rtn")
