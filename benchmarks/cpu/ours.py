"""bitbrush's own executors on a saved artifact."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bitbrush.artifact.denoiser import load_denoiser
from bitbrush.runtime.choose import RuntimeName, choose_runtime
from bitbrush.runtime.onednn.weights import Memory
from cpu.artifact import artifact
from cpu.subjects import Denoise, Subject, Task, bound


@dataclass(frozen=True)
class Way:
    """How an artifact is run: executor, float type between the integer layers, and how weights are kept."""

    runtime: str
    dtype: torch.dtype = torch.bfloat16
    memory: Memory = Memory.EXPANDED


def open_artifact(folder: Path, way: Way) -> Any:
    """The denoiser, ready to be called. The one place that knows how bitbrush is told about executors."""
    return load_denoiser(folder, choose_runtime(RuntimeName(way.runtime), dtype=way.dtype, memory=way.memory))


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
    _subject("bitbrush W4A8 onednn low memory", 4, Way("onednn", memory=Memory.LOW)),
    _subject("bitbrush W8A8 openvino", 8, Way("openvino")),
)
