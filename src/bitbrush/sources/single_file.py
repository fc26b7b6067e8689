"""Checkpoints of a whole pipeline in one file, in the layout of the original code (Civitai, ComfyUI)."""

import json
import traceback
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from diffusers.models.model_loading_utils import load_state_dict
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from torch import nn

from bitbrush.sources.model_names import MODEL_INDEX
from bitbrush.sources.networks import missing_tensors, require_whole

DENOISER = "model.diffusion_model."
AUTOENCODER = ("first_stage_model.", "vae.")


def load_single_file(path: Path, config: str | None, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """Loads the pipeline in ``dtype``, with diffusers' own conversion.

    Args:
        path: Checkpoint file.
        config: Pipeline folder or hub id with the configuration and the tokenizers. None uses the published model that
            the checkpoint's shapes indicate, from the hub or its cache.
        dtype: Type of all networks.

    Raises:
        ValueError: The file is not such a checkpoint, or the configuration is unavailable or does not fit.
    """
    _require_layout(path)
    source = config if config is not None else _published(path)
    try:
        pipeline = getattr(diffusers, _pipeline_class(source))
        pipe: DiffusionPipeline = pipeline.from_single_file(str(path), config=source, torch_dtype=dtype)
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module):
                require_whole(part, name)
        return pipe
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, HfHubHTTPError) as error:
        description = f"the configuration {source}" if config else f"{source}, which its shapes indicate"
        reason = _missing_tensors(error) or _first_line(error)
        raise ValueError(
            f"{path} cannot be loaded with {description}: {reason}; give the pipeline folder that it belongs to with "
            "--config, or download the file again"
        ) from error


def _require_layout(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is no intact safetensors file: {error}; download it again") from error
    parts = {"a denoiser": DENOISER, "an autoencoder": AUTOENCODER}
    missing = [part for part, prefix in parts.items() if not any(key.startswith(prefix) for key in keys)]
    if missing:
        raise ValueError(
            f"{path} is no checkpoint of a whole pipeline: {' and '.join(missing)} is missing among its {len(keys)} "
            f"tensors ({', '.join(keys[:3])} ...); give a pipeline folder, or a file that holds all of its networks"
        )


def _published(path: Path) -> str:
    checkpoint = load_state_dict(str(path))
    return str(fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"])


def _pipeline_class(source: str) -> str:
    folder = Path(source)
    index = folder / MODEL_INDEX if folder.is_dir() else Path(hf_hub_download(source, MODEL_INDEX))
    return str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])


def _missing_tensors(error: BaseException) -> str | None:
    """Names the tensors that the file lacks, if diffusers failed to place a network without their values.

    The error does not name them, so the function inspects the network in the failing call's frame.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        networks = [part for part in frame.f_locals.values() if isinstance(part, ModelMixin)]
        for network in networks:
            if lack := missing_tensors(network):
                return f"{type(network).__name__} {lack}"
    return None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
