"""Saving and loading of artifacts: pipeline folders with packed integers and a manifest, written atomically."""

import importlib.metadata
import json
import os
import platform
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from bitbrush.artifact.building import building
from bitbrush.artifact.card import model_card
from bitbrush.artifact.denoiser import WEIGHTS, check_denoiser, load_denoiser
from bitbrush.artifact.documents import ArtifactError
from bitbrush.artifact.folder import CARD, MANIFEST, file_digests
from bitbrush.artifact.from_pretrained import BitbrushConfig
from bitbrush.artifact.local_paths import remove_local_paths
from bitbrush.artifact.manifest import (
    FORMAT,
    SCHEMA_VERSION,
    artifact_folder,
    manifest_digest,
    read_manifest,
    reading_tensors,
)
from bitbrush.artifact.narrow import narrow_files
from bitbrush.artifact.sizes import bytes_to_save, checkpoint_bytes
from bitbrush.artifact.tensor_file import TensorFile
from bitbrush.artifact.tensors import layer_from_tensors, layer_tensors, other_tensors
from bitbrush.artifact.usable import require_usable
from bitbrush.artifact.verification import reading
from bitbrush.artifact.vocabulary import save_vocabulary
from bitbrush.methods.recipe import Recipe
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.lazy_weights import materialized
from bitbrush.network.low_rank import branch_ranks
from bitbrush.network.narrow import float32_bytes
from bitbrush.network.narrow_weight import compute_in_float32
from bitbrush.network.skip_inputs import split_begins
from bitbrush.quantization.quantize import Quantization
from bitbrush.runtime.choose import Choice, runtime_named
from bitbrush.runtime.onednn.weights import Memory
from bitbrush.session.disk import require_replaceable, require_space, writing
from bitbrush.session.journal import mark_saved
from bitbrush.session.outputs import claimed
from bitbrush.session.replacing import complete_folder, remove_folder
from bitbrush.sources.checkpoint_type import component_types
from bitbrush.sources.identity import model_digest
from bitbrush.sources.model_names import MODEL_INDEX, portable_name
from bitbrush.sources.models import ModelOptions
from bitbrush.sources.networks import load_networks, load_pipeline
from bitbrush.sources.savable import refuse_saving, saved_class
from bitbrush.timeline.defaults import plain_defaults


def require_free(directory: Path, *, overwrite: bool = True) -> None:
    """Checks that an artifact can be written to a directory.

    Args:
        directory: Path of the artifact to write.
        overwrite: Whether an existing artifact may be replaced.

    Raises:
        ValueError: The directory holds something else, or an artifact that must not be replaced.
        DiskError: The path is read-only.
    """
    require_replaceable(directory)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    try:
        read_manifest(directory)  # other programs also write a manifest.json
    except ArtifactError as error:
        raise ValueError(
            f"{directory} exists and is no bitbrush artifact to replace; choose another directory or remove it"
        ) from error
    if not overwrite:
        raise ValueError(
            f"{directory} holds an artifact; give --overwrite to replace it once the new one is complete, or choose "
            "another directory"
        )


def save(
    quantization: Quantization,
    directory: str | os.PathLike[str],
    *,
    base_model: str | None = None,
    options: ModelOptions | None = None,
    work: Path | None = None,
) -> Path:
    """Saves a quantized pipeline as an artifact and replaces an existing one.

    The artifact is written to a temporary folder, read back, and moved when complete. Errors leave no partial files.

    Args:
        quantization: Quantized pipeline.
        directory: Path of the artifact.
        base_model: Hub id, bundled name or path of the full-precision pipeline; a recalibrated artifact inherits it.
        options: Further loading options of that pipeline: revision, variant, LoRAs.
        work: Folder of the finished work, which is removed when the artifact is in place.

    Returns:
        Path of the artifact.

    Raises:
        ValueError: The base model is unknown, or the directory holds something else, or another process writes there.
        DiskError: The disk is full or read-only.
    """
    target = Path(directory)
    origin = _origin(quantization, base_model, options or ModelOptions())
    sizes = _model_sizes(quantization, base_model, options or ModelOptions())
    size = bytes_to_save(quantization)
    with claimed(target):
        require_free(target)
        require_space(target, size)
        with writing(target, size), complete_folder(target) as fresh:
            _write(quantization, fresh, origin, sizes)
            _require_loadable(fresh)
            if work is not None:
                mark_saved(work, fresh / MANIFEST)
        if work is not None:
            remove_folder(work)
    return target


def load(
    directory: str | os.PathLike[str],
    *,
    runtime: str = "auto",
    dtype: str | torch.dtype | None = None,
    memory: str = "expanded",
) -> DiffusionPipeline:
    """Loads an artifact as a quantized pipeline.

    Args:
        directory: Folder or hub id of the artifact.
        runtime: ``onednn`` (8-bit CPU kernels), ``cuda`` (8-bit kernels on an NVIDIA GPU, which holds the pipeline),
            ``reference`` (exact integers in float32), or ``auto``, the fastest that is exact on this machine.
        dtype: Type of all but the integer products: float32, bfloat16, or None for bfloat16 where it is fast.
        memory: ``expanded``, or ``low`` to keep weights of up to 4 bits packed.

    Returns:
        The quantized pipeline.

    Raises:
        ValueError: A name is unknown, or this machine cannot execute the runtime.
        ArtifactError: The directory is no intact artifact that this version reads.
    """
    return load_with(directory, runtime_named(runtime, dtype, memory))


def load_with(directory: str | os.PathLike[str], choice: Choice) -> DiffusionPipeline:
    """Loads an artifact (folder or hub id) with the runtime, type, memory mode and device of ``choice``.

    All files are verified first. Weights are read layer by layer; an integer runtime never holds them in floating
    point. Everything else computes in float32. In low-memory mode the other networks keep their stored types and are
    widened for each call.

    Returns:
        The quantized pipeline.

    Raises:
        ArtifactError: The directory is no artifact, has a newer schema, or is incomplete or altered; or this version
            of transformers cannot read it.
    """
    with plain_defaults(), reading(directory) as (root, manifest):
        return _load(root, manifest, choice)


def _load(root: Path, manifest: dict[str, Any], choice: Choice) -> DiffusionPipeline:
    component = manifest["denoiser"]["component"]
    try:
        with reading_tensors(root):
            denoiser = load_denoiser(root / component, choice)
        with building(root):
            types = component_types(root) if choice.memory is Memory.LOW else torch.float32
            pipe = load_pipeline(root, types, components={component: denoiser})
            require_usable(pipe, Recipe().updated(manifest["recipe"]).steps)
    except ImportError as error:  # a tokenizer class of another version may need further packages
        saved_with = manifest["versions"].get("transformers", "of another version")
        raise ArtifactError(
            f"{root} was saved with transformers {saved_with}, and {importlib.metadata.version('transformers')} does "
            f"not read all of it without more packages; install transformers>={saved_with}, or those ({error})"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    placed: DiffusionPipeline = choice.place(pipe)
    for name, part in placed.components.items():
        if name != component and isinstance(part, torch.nn.Module):
            compute_in_float32(part)
    object.__setattr__(placed, "save_pretrained", refuse_saving)  # rejects before anything is written
    return placed


def verify(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Verifies an artifact as loading does, tensors included, with one network in memory at a time.

    Args:
        source: Folder or hub id.

    Returns:
        The manifest.

    Raises:
        ArtifactError: A file, document or tensor is not what it should be; the message names it.
    """
    with plain_defaults(), reading(source) as (root, manifest):
        _read_all(root, manifest)
        return manifest


def read_layer(directory: str | os.PathLike[str], name: str) -> QuantizedLayer:
    """Reads one quantized layer of an artifact.

    Raises:
        KeyError: The artifact has no quantized layer of that name.
    """
    root = artifact_folder(directory)
    manifest = read_manifest(root)
    (entry,) = [layer for layer in manifest["layers"] if layer["name"] == name] or [None]
    if entry is None or entry["excluded"] is not None:
        raise KeyError(name)
    tensors = TensorFile(root / manifest["denoiser"]["component"] / WEIGHTS)
    return layer_from_tensors(name, tuple(entry["shape"]), entry["weight_bits"], tensors)


def read_layers(directory: str | os.PathLike[str]) -> Iterator[QuantizedLayer]:
    """Yields all quantized layers of an artifact, in order."""
    root = artifact_folder(directory)
    manifest = read_manifest(root)
    tensors = TensorFile(root / manifest["denoiser"]["component"] / WEIGHTS)
    for entry in manifest["layers"]:
        if entry["excluded"] is None:
            yield layer_from_tensors(entry["name"], tuple(entry["shape"]), entry["weight_bits"], tensors)


def _read_all(root: Path, manifest: dict[str, Any]) -> None:
    """Reads every tensor, with one network in memory at a time and without computing anything."""
    component = manifest["denoiser"]["component"]
    with reading_tensors(root):
        denoiser = check_denoiser(root / component)
    with building(root):
        networks = load_networks(root, component_types(root), omit=(component,))
        empty = {name: network.to("meta") for name, network in networks}
        pipe = load_pipeline(root, components={**empty, component: denoiser})
        require_usable(pipe, Recipe().updated(manifest["recipe"]).steps)


def _require_loadable(root: Path) -> None:
    """Checks that the artifact loads.

    Raises:
        ValueError: The artifact does not load.
    """
    try:
        verify(root)
    except (ImportError, ArtifactError) as error:
        raise ValueError(f"the artifact was not kept, as it does not load: {error}") from error


def _origin(quantization: Quantization, base_model: str | None, options: ModelOptions) -> dict[str, Any]:
    """Returns the manifest entries on the origin of the weights."""
    if quantization.recalibrated is not None:
        manifest = quantization.recalibrated["manifest"]
        earlier = {"digest": quantization.recalibrated["digest"], "recipe": manifest["recipe"]}
        kept = {key: manifest[key] for key in ("base_model_digest", "base_model_options") if key in manifest}
        origin = {"base_model": portable_name(manifest["base_model"]), "base_model_options": {}, **kept}
        return {**origin, "recalibrated_from": manifest.get("recalibrated_from", earlier)}
    if base_model is None:
        raise ValueError("base_model is needed: the name, folder or hub id of the full-precision pipeline")
    return {
        "base_model": portable_name(base_model),
        "base_model_digest": model_digest(quantization.original or quantization.source),
        "base_model_options": options.facts(),
    }


def _write(quantization: Quantization, root: Path, origin: dict[str, Any], sizes: dict[str, int]) -> None:
    pipe, component = quantization.source, quantization.family.component
    root.mkdir()
    _write_index(pipe, root)
    for name, part in pipe.components.items():
        if name != component and hasattr(part, "save_pretrained"):
            whole: Any = materialized(part) if isinstance(part, torch.nn.Module) else part
            whole.save_pretrained(root / name)
            save_vocabulary(part, root / name)
            narrow_files(root / name)
    denoiser = getattr(pipe, component)
    layers = {layer.name: layer for layer in quantization.outcome.layers}
    bits = {name: one.weight.qparams.bits for name, one in layers.items()}
    known = [name for name, one in layers.items() if one.first is not None]
    config = BitbrushConfig(bits, split_begins(denoiser), branch_ranks(denoiser), known)
    _write_config(denoiser, config, root / component)
    remove_local_paths(root)
    tensors = other_tensors(denoiser, layers)
    for layer in layers.values():
        tensors |= layer_tensors(layer)
    save_file(tensors, root / component / WEIGHTS, metadata={"format": "pt"})
    manifest = _manifest(quantization, origin, sizes, root)
    manifest["files"] = file_digests(root)
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (root / CARD).write_text(model_card(manifest, manifest_digest(root)), encoding="utf-8")
    mode = (root / MANIFEST).stat().st_mode
    for name in manifest["files"]:
        (root / name).chmod(mode)  # safetensors creates files that only their owner can read


def _write_index(pipe: DiffusionPipeline, root: Path) -> None:
    """Writes the pipeline's ``model_index.json`` with a class that diffusers knows."""
    pipe.save_config(root)
    known = saved_class(pipe)
    if known is not type(pipe):
        index = json.loads((root / MODEL_INDEX).read_text(encoding="utf-8"))
        index["_class_name"] = known.__name__
        (root / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        own = type(pipe).__name__
        warnings.warn(
            f"{own} is no class of diffusers: the artifact loads as a {known.__name__}, whose components "
            f"{own}(**bitbrush.load(DIR).components) takes over",
            stacklevel=4,
        )


def _write_config(denoiser: Any, quantization: BitbrushConfig, directory: Path) -> None:
    """Writes the denoiser's configuration with the quantization entry that ``from_pretrained`` requires."""
    denoiser.save_config(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = quantization.to_dict()
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _model_sizes(quantization: Quantization, base_model: str | None, options: ModelOptions) -> dict[str, int]:
    """Returns the sizes of the input denoiser; a recalibrated artifact inherits them from its predecessor."""
    if quantization.recalibrated is not None:
        earlier = quantization.recalibrated["manifest"]["denoiser"]
        return {key: earlier[key] for key in ("full_precision_bytes", "checkpoint_bytes") if key in earlier}
    component = quantization.family.component
    denoiser = getattr(quantization.original or quantization.source, component)
    return {
        "full_precision_bytes": float32_bytes(denoiser),
        "checkpoint_bytes": checkpoint_bytes(str(base_model), options, component, denoiser),
    }


def _manifest(quantization: Quantization, origin: dict[str, Any], sizes: dict[str, int], root: Path) -> dict[str, Any]:
    recipe: Recipe = quantization.recipe
    component = quantization.family.component
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        **origin,
        "recipe": recipe.to_dict(),
        "pipeline_class": type(quantization.source).__name__,
        "plan": {
            "scheduler": type(quantization.source.scheduler).__name__,
            "timesteps": list(quantization.outcome.planned),
            "average_activation_bits": quantization.average_activation_bits,
            "start_token_ratio": quantization.outcome.start_token_ratio,
        },
        "denoiser": {
            "component": component,
            "family": quantization.family.name,
            "bytes": (root / component / WEIGHTS).stat().st_size,
            **sizes,
        },
        "layers": [{**asdict(spec), "shape": list(spec.shape)} for spec in quantization.outcome.specs],
        "processes": quantization.processes,
        "cost": {phase: asdict(cost) for phase, cost in quantization.costs.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("bitbrush", "torch", "diffusers", "transformers")},
        },
    }
