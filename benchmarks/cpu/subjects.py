"""What a subject is: a way of running one denoiser on this processor."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cpu.models import Inputs, Model

THREADS = len(os.sched_getaffinity(0))

Denoise: TypeAlias = Callable[[Tensor, float], Tensor]
"""From latents (2, 4, L, L) float32 and a timestep to the prediction, of any float type."""


@dataclass(frozen=True)
class Task:
    """A model at one size of latents, and the folder that keeps what is made for it."""

    model: Model
    size: int
    scratch: Path

    @property
    def inputs(self) -> Inputs:
        return Inputs.of(self.model, self.size)

    @property
    def key(self) -> str:
        return f"{self.model.name}@{self.size}"

    def folder(self, name: str) -> Path:
        return self.scratch / self.model.name / name


@dataclass(frozen=True)
class Subject:
    """``load`` makes the denoiser ready in the process that is measured; ``prepare`` works before, in one of its own.

    ``load`` is timed, and its memory counts. ``prepare`` stores what its users store on disk: it quantizes, converts.
    ``relaxed``: steps of more activation bits are timed in a row of their own.
    """

    name: str
    load: Callable[[Task], Denoise]
    prepare: Callable[[Task], None] | None = None
    relaxed: bool = False


def bound(denoiser: Any, task: Task, dtype: torch.dtype, layout: torch.memory_format) -> Denoise:
    """A diffusers denoiser with its conditioning; latents are cast and laid out as it wants them."""
    conditioning = task.inputs.conditioning_as(dtype)

    def denoise(latents: Tensor, timestep: float) -> Tensor:
        sample = latents.to(dtype).contiguous(memory_format=layout)
        prediction: Tensor = denoiser(sample, torch.tensor(timestep), return_dict=False, **conditioning)[0]
        return prediction

    return denoise
