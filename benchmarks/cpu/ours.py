"""bitbrush's own executors on a saved artifact."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

import bitbrush
from cpu.artifact import artifact
from cpu.subjects import Denoise, Subject, Task, bound


@dataclass(frozen=True)
class Way:
    """How an artifact is run: executor, float type between the integer layers, and how weights are kept."""

    runtime: str
    dtype: torch.dtype = torch.bfloat16
    memory: str = "normal"


def open_artifact(folder: Path, way: Way) -> Any:
    """The denoiser, ready to be called. The one place that knows how bitbrush is told about executors."""
    if way != Way("reference", torch.float32):
        raise NotImplementedError(f"bitbrush {bitbrush.__version__} has no runtime {way.runtime}")
    bitbrush.register()
    return UNet2DConditionModel.from_pretrained(folder).eval()


def _prepare(weight_bits: int, task: Task) -> None:
    artifact(task, weight_bits)


def _load(weight_bits: int, way: Way, task: Task) -> Denoise:
    denoiser = open_artifact(artifact(task, weight_bits), way)
    return bound(denoiser, task, way.dtype, torch.channels_last)


def _subject(name: str, weight_bits: int, way: Way) -> Subject:
    return Subject(
        name,
        partial(_load, weight_bits, way),
        prepare=partial(_prepare, weight_bits),
        relaxed=way.runtime != "reference",
    )


OURS = (
    _subject("bitbrush W8A8 reference", 8, Way("reference", torch.float32)),
    _subject("bitbrush W8A8 onednn", 8, Way("onednn")),
    _subject("bitbrush W4A8 onednn", 4, Way("onednn")),
    _subject("bitbrush W4A8 onednn low memory", 4, Way("onednn", memory="low")),
    _subject("bitbrush W8A8 openvino", 8, Way("openvino")),
    _subject("bitbrush W4A8 openvino", 4, Way("openvino")),
)
