"""Full-precision pipelines by bundled name, local directory, hub id, or single file."""

import gc
import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import nn

from bitbrush.network.families import DENOISERS
from bitbrush.network.lazy_weights import layer_bytes, offload_weights
from bitbrush.session.allocator import return_freed_memory
from bitbrush.session.disk import require_space
from bitbrush.session.offload import CPU, Offload
from bitbrush.sources.checkpoint_type import component_types, file_type, variant_files
from bitbrush.sources.lora import Lora, fuse_lora
from bitbrush.sources.model_names import (
    MODEL_INDEX,
    SINGLE_FILE,
    UnknownModelError,
    did_you_mean,
    portable_name,
    require_known,
    unknown_text,
)
from bitbrush.sources.networks import lacks_weights, load_pipeline
from bitbrush.sources.single_file import load_single_file
from bitbrush.zoo import model_path

HALF_VARIANT = "fp16"
ARTIFACT_MANIFEST, ARTIFACT_FORMAT = "manifest.json", "bitbrush-artifact"
"""File and format name that mark an artifact (``artifact/manifest.py``)."""
_NEED = "that the model's weights take while it is quantized"
LARGE = 256 << 20
"""Bytes of a checkpoint from which freed memory returns to the system at once.

Returned memory must be paged in again. On emoji-sd this took a third of the time and saved 380 MiB.
"""


@dataclass(frozen=True)
class ModelOptions:
    """Selection of a model's files, and the LoRAs to fuse.

    Args:
        revision: Branch, tag or commit on the hub.
        variant: Variant of the weight files, e.g. ``fp16``.
        config: Pipeline folder or hub id that defines a single file's architecture.
        loras: LoRAs, fused in this order.
    """

    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    loras: tuple[Lora, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Returns the options that are set, for the manifest; files by name and hash, without their folders."""
        config = None if self.config is None else portable_name(self.config)
        options = {"revision": self.revision, "variant": self.variant, "config": config}
        facts: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        return facts | ({"loras": [lora.facts() for lora in self.loras]} if self.loras else {})


def load_full_precision(model: str | os.PathLike[str], options: ModelOptions | None = None) -> DiffusionPipeline:
    """Loads a pipeline in float32, with its progress bar off.

    Hub ids are loaded from the cache that HF_HOME names, or downloaded; with HF_HUB_OFFLINE=1 never downloaded.

    Args:
        model: Bundled name, path or hub id.
        options: Files to load and LoRAs to fuse.

    Raises:
        UnknownModelError: No such pipeline exists.
        ValueError: An option does not apply, or a LoRA does not fit.
    """
    options = options or ModelOptions()
    source = find_model(model, options)
    if source.endswith(SINGLE_FILE):
        pipe = load_single_file(Path(source), options.config)
    else:
        pipe = _load_folder(model, source, options)
    return _finished(pipe, options)


def load_source(
    model: str | os.PathLike[str],
    options: ModelOptions | None = None,
    *,
    offload: Offload,
    device: torch.device = CPU,
) -> DiffusionPipeline:
    """Loads a pipeline for quantization, its networks' weights offloaded to disk in the checkpoint's own dtype.

    On a GPU the weights are in its memory instead, in that dtype. Computed in float32, the pipeline equals that of
    :func:`load_full_precision`, bit for bit. Networks are in memory once during loading, in float32 if there are LoRAs
    to fuse.

    Args:
        model: Bundled name, path or hub id.
        options: Files to load and LoRAs to fuse.
        offload: Destination of the weights.
        device: Device of the pipeline.

    Raises:
        UnknownModelError: No such pipeline exists.
        ValueError: An option does not apply, or a LoRA does not fit.
        DiskError: The disk is full or read-only.
    """
    options = options or ModelOptions()
    source = find_model(model, options)
    size = _bytes_on_disk(source, options.variant)
    if device == CPU and offload.folder is not None and size < math.inf:
        require_space(offload.folder, int(size), _NEED)
    if size >= LARGE:
        return_freed_memory()  # before the first large allocation, as the heap would keep its size
    if options.loras:
        pipe = load_full_precision(model, options)
    elif source.endswith(SINGLE_FILE):
        pipe = load_single_file(Path(source), options.config, file_type(Path(source)))
    else:
        pipe = _load_folder(model, source, options, own_type=True)
    if device == CPU:
        networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
        if offload.folder is not None:  # in the loaded types, and text encoders included
            require_space(offload.folder, sum(map(layer_bytes, networks)), _NEED)
        for network in networks:
            offload_weights(network, offload)
    gc.collect()  # loaders leave reference cycles, which keep checkpoint files mapped
    return _finished(pipe, replace(options, loras=())).to(device)


def _bytes_on_disk(source: str, variant: str | None) -> float:
    """Returns the bytes of a local model's denoiser; infinity for a model that is not downloaded yet."""
    path = Path(source)
    if path.is_file():
        return path.stat().st_size
    files = [file for name in DENOISERS if (path / name).is_dir() for file in variant_files(path / name, variant)]
    return sum(file.stat().st_size for file in files) if path.is_dir() else math.inf


def _finished(pipe: DiffusionPipeline, options: ModelOptions) -> DiffusionPipeline:
    for lora in options.loras:
        fuse_lora(pipe, lora)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def find_model(model: str | os.PathLike[str], options: ModelOptions | None = None) -> str:
    """Locates a model without loading weights: a directory, a single file, or the name itself as a hub id.

    For a hub id it fetches only the file that lists the components.

    Args:
        model: Bundled name, path or hub id.
        options: Options that must apply to the model.

    Raises:
        UnknownModelError: No such pipeline exists.
        ValueError: An option does not apply.
    """
    options = options or ModelOptions()
    _require_full_precision(model, Path(model) / ARTIFACT_MANIFEST)
    require_known(model, options.revision)
    source = _find(os.fspath(model))
    single, local = source.endswith(SINGLE_FILE), Path(source).exists()
    if options.config is not None and not single:
        raise ValueError(
            f"config is {options.config!r}, but {str(model)!r} is no {SINGLE_FILE} file: it brings its own"
        )
    if options.variant is not None and single:
        raise ValueError(f"variant is {options.variant!r}, but a single file such as {source} has no variants")
    if options.revision is not None and local:
        raise ValueError(f"revision is {options.revision!r}, but {source} is local; revisions are of hub ids")
    for lora in options.loras:
        lora.require()
    if not single and not local:
        _require_on_hub(source, options)
    return source


def _require_full_precision(model: str | os.PathLike[str], manifest: Path) -> None:
    """Raises UnknownModelError if ``manifest`` is an artifact's; other programs have files of that name, too."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(content, dict) and content.get("format") == ARTIFACT_FORMAT:
        raise UnknownModelError(
            f"{str(model)!r} is a quantized artifact, and a full-precision model is needed: give the one that it was "
            f"made of ({content.get('base_model')}); bitbrush recalibrate finds ranges for another plan on the "
            "artifact's own integers"
        )


def _find(model: str) -> str:
    bundled = model_path(model)
    if bundled is not None:
        if not (bundled / MODEL_INDEX).exists():
            raise UnknownModelError(f"bundled model {model!r} is no pipeline; emoji-sd and emoji-sdxl are")
        return str(bundled)
    path = Path(model)
    if path.suffix == SINGLE_FILE and not path.is_file():
        raise UnknownModelError(f"{path} is no file, as a checkpoint that ends in {SINGLE_FILE} is")
    if path.suffix != SINGLE_FILE and path.exists() and not (path / MODEL_INDEX).is_file():
        raise UnknownModelError(
            f"{path} is no diffusers pipeline: it has no {MODEL_INDEX}; a checkpoint in one file ends in {SINGLE_FILE}"
            f"{did_you_mean(model)}"
        )
    return model


def _load_folder(
    model: str | os.PathLike[str], source: str, options: ModelOptions, *, own_type: bool = False
) -> DiffusionPipeline:
    try:
        folder = Path(source) if Path(source).is_dir() else _download(source, options)
        types = component_types(folder, options.variant) if own_type else torch.float32
        return load_pipeline(folder, types, variant=options.variant)
    except (OSError, ValueError, SafetensorError, HfHubHTTPError) as error:
        message = _unreadable(source, options, error) if Path(source).is_dir() else _unknown(model, options, error)
        raise UnknownModelError(message) from error


def _download(model: str, options: ModelOptions) -> Path:
    """Downloads a hub id to the cache, with half-precision files if it has no others, and returns the folder."""
    folder = Path(DiffusionPipeline.download(model, revision=options.revision, variant=options.variant))
    if options.variant is None and lacks_weights(folder):
        folder = Path(DiffusionPipeline.download(model, revision=options.revision, variant=HALF_VARIANT))
    return folder


def _require_on_hub(model: str, options: ModelOptions) -> None:
    """Rejects a mistyped hub id before its later consequences, such as missing prompts, and the id of an artifact."""
    try:
        hf_hub_download(model, MODEL_INDEX, revision=options.revision)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UnknownModelError(_unknown(model, options, error)) from error
    try:
        manifest = hf_hub_download(model, ARTIFACT_MANIFEST, revision=options.revision)
    except (OSError, ValueError, HfHubHTTPError):
        return  # most models have no such file
    _require_full_precision(model, Path(manifest))


def _unreadable(folder: str, options: ModelOptions, error: Exception) -> str:
    return (
        f"the pipeline in {folder}{_requirements(options)} cannot be loaded: {error}; a file may be missing, damaged "
        "or cut short: fetch it again"
    )


def _requirements(options: ModelOptions) -> str:
    requirements = {"revision": options.revision, "variant": options.variant}
    listing = ", ".join(f"{name} {value!r}" for name, value in requirements.items() if value is not None)
    return f" with {listing}" if listing else ""


def _unknown(model: str | os.PathLike[str], options: ModelOptions, error: Exception) -> str:
    return unknown_text(os.fspath(model), _requirements(options), str(error))
