"""Full-precision pipelines by bundled name, local directory or hub id."""

import os
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from bitbrush.zoo import MODELS, model_path

MODEL_INDEX = "model_index.json"


class UnknownModelError(ValueError):
    """No pipeline is to be had under the given name."""


def load_full_precision(model: str | os.PathLike[str]) -> DiffusionPipeline:
    """The pipeline in float32, its progress bar off. Raises UnknownModelError if there is none."""
    source = find_model(model)
    try:
        pipe = DiffusionPipeline.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UnknownModelError(
            f"model {str(model)!r} is neither bundled ({', '.join(MODELS)}), nor a directory with {MODEL_INDEX}, nor "
            f"reachable on the hub: {error}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def find_model(model: str | os.PathLike[str]) -> str:
    """Where ``from_pretrained`` finds the model: a directory, or the name itself as a hub id."""
    bundled = model_path(os.fspath(model))
    if bundled is not None:
        if not (bundled / MODEL_INDEX).exists():
            raise UnknownModelError(f"bundled model {str(model)!r} is no pipeline; emoji-sd is")
        return str(bundled)
    path = Path(model)
    if path.exists() and not (path / MODEL_INDEX).is_file():
        raise UnknownModelError(f"{path} is no diffusers pipeline: it has no {MODEL_INDEX}")
    return os.fspath(model)
