"""bitbrush's own executors on a saved artifact."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bitbrush.artifact.denoiser import load_denoiser
from bitbrush.runtime.choose import RuntimeName, choose_runtime
from bitbrush.runtime.onednn.weights import Memory
from bitbrush.session.allocator import allow_tuning
from cpu.artifact import Form, artifact
from cpu.subjects import Denoise, Subject, Task, bound


@dataclass(frozen=True)
class Way:
    """How an artifact is run: executor, float type between the integer layers, and how weights are kept."""

    runtime: str
    dtype: torch.dtype = torch.bfloat16
    memory: Memory = Memory.EXPANDED


def open_artifact(folder: Path, way: Way) -> Any:
    """The denoiser, ready to be called. The one place that knows how bitbrush is told about executors."""
    allow_tuning()  # as the command line does
    return load_denoiser(folder, choose_runtime(RuntimeName(way.runtime), dtype=way.dtype, memory=way.memory))


def _prepare(form: Form, task: Task) -> None:
    artifact(task, form)


def _load(form: Form, way: Way, task: Task) -> Denoise:
    denoiser = open_artifact(artifact(task, form), way)
    return bound(denoiser, task, way.dtype, torch.channels_last)


def _subject(name: str, form: Form, way: Way) -> Subject:
    return Subject(
        name,
        partial(_load, form, way),
        prepare=partial(_prepare, form),
        relaxed=way.runtime != "reference",
    )


OURS = (
    _subject("bitbrush W8A8 reference", Form(8), Way("reference", torch.float32)),
    _subject("bitbrush W8A8 onednn", Form(8), Way("onednn")),
    _subject("bitbrush W4A8 onednn", Form(4), Way("onednn")),
    _subject("bitbrush W4A8 onednn low memory", Form(4), Way("onednn", memory=Memory.LOW)),
    _subject("bitbrush W4A8 rank 16 onednn", Form(4, rank=16), Way("onednn")),
)
