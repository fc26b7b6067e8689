"""Loading and verification of artifacts: every file is verified before it is used."""

import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import DiffusionPipeline

from bitbrush.artifact.building import building
from bitbrush.artifact.denoiser import CONFIG, WEIGHTS, check_denoiser, load_denoiser
from bitbrush.artifact.documents import ArtifactError, parse, read_whole
from bitbrush.artifact.manifest import artifact_folder, read_manifest, reading_tensors
from bitbrush.artifact.network import check_network, load_network, network_class, weights_name
from bitbrush.artifact.single_file import extracting, is_single_file
from bitbrush.artifact.stored import StoredDenoiser, attach, copying, stored_of
from bitbrush.artifact.tensor_file import TensorFile
from bitbrush.artifact.tensors import layer_from_tensors
from bitbrush.artifact.usable import require_usable
from bitbrush.artifact.verification import reading
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.narrow_weight import compute_in_float32
from bitbrush.network.own_dtype import (
    compute_in_bfloat16,
    is_autoencoder,
    is_text_encoder,
    refuse_overflow_,
    set_channels_last_,
)
from bitbrush.runtime.choose import Choice, runtime_named
from bitbrush.runtime.onednn.weights import Memory
from bitbrush.session.offload import CPU
from bitbrush.sources.checkpoint_type import component_types
from bitbrush.sources.networks import load_networks, load_pipeline
from bitbrush.timeline.defaults import plain_defaults


def load(
    directory: str | os.PathLike[str],
    *,
    runtime: str = "auto",
    dtype: str | torch.dtype | None = None,
    memory: str = "expanded",
    unquantized: str | torch.dtype = "float32",
) -> DiffusionPipeline:
    """Loads an artifact as a quantized pipeline.

    Args:
        directory: Folder, single file or hub id of the artifact.
        runtime: ``onednn`` (8-bit CPU kernels), ``cuda`` (8-bit kernels on an NVIDIA GPU, which holds the pipeline),
            ``reference`` (exact integers in float32), or ``auto``, the fastest that is exact on this machine.
        dtype: Type of all but the integer products: float32, bfloat16, or None for bfloat16 where it is fast.
        memory: ``expanded``, or ``low`` to keep weights of up to 4 bits packed.
        unquantized: Type that text encoders and VAE compute in where they are not quantized: float32, or bfloat16,
            which halves the time of the VAE on CPUs with instructions for it. The error is stated in
            docs/how-to/other-networks.md.

    Returns:
        The quantized pipeline.

    Raises:
        ValueError: A name is unknown, or this machine cannot execute the runtime.
        ArtifactError: The directory is no intact artifact that this version reads.
    """
    return load_with(directory, runtime_named(runtime, dtype, memory, unquantized=unquantized))


@dataclass(frozen=True)
class Surroundings:
    """Pipeline around a denoiser, where it is not the artifact's own.

    Attributes:
        kind: Class of the pipeline; the base class stands for the one that the artifact names.
        dtype: Type of the other networks, or types by component name with "default"; None for float32.
        components: Arguments of the pipeline that replace what the artifact holds.
    """

    kind: type[DiffusionPipeline] = DiffusionPipeline
    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None
    components: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


OWN = Surroundings()


def load_with(directory: str | os.PathLike[str], choice: Choice, surroundings: Surroundings = OWN) -> DiffusionPipeline:
    """Loads an artifact (folder, file or hub id) with the runtime, type, memory mode and device of ``choice``.

    All files are verified first. Weights are read layer by layer; an integer runtime never holds them in floating
    point. Everything else computes in float32, or in the choice's other type. In low-memory mode the other networks
    keep their stored types and are widened for each call.

    Args:
        directory: Folder, single file or hub id of the artifact.
        choice: Runtime, type, memory mode and device.
        surroundings: Class, types and components of the pipeline, where they are not the artifact's own.

    Returns:
        The quantized pipeline.

    Raises:
        ArtifactError: The directory is no artifact, has a newer schema, or is incomplete or altered; or this version
            of transformers cannot read it.
    """
    with plain_defaults(), reading(directory) as (root, manifest):
        pipe = _load(root, manifest, choice, surroundings)
    if is_single_file(directory):
        _remember(pipe, Path(directory), manifest)
    return pipe


def _remember(pipe: DiffusionPipeline, path: Path, manifest: Mapping[str, Any]) -> None:
    """Records the single file from which networks came, since the folder that it was unpacked to is gone."""
    for component in quantized_components(manifest):
        network = getattr(pipe, component)
        stored = stored_of(network)
        if stored is not None and stored.manifest is manifest:
            name = f"{component}/{weights_name(type(network))}"
            attach(network, replace(stored, write=extracting(path.absolute(), name, manifest["files"][name])))


def quantized_components(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of an artifact's quantized networks, the denoiser first."""
    return manifest["denoiser"]["component"], *manifest.get("networks", {})


def _load(root: Path, manifest: dict[str, Any], choice: Choice, surroundings: Surroundings) -> DiffusionPipeline:
    component = manifest["denoiser"]["component"]
    parts = dict(surroundings.components)
    types = surroundings.dtype or (component_types(root) if choice.memory is Memory.LOW else torch.float32)
    try:
        with reading_tensors(root):
            if component not in parts:
                parts[component] = load_stored(root / component, manifest, choice)
            for name in manifest.get("networks", {}):
                if name not in parts:
                    parts[name] = _load_stored_network(root, name, manifest, choice)
        with building(root):
            pipe = load_pipeline(root, types, components=parts, pipeline_class=surroundings.kind)
            require_usable(pipe, manifest)
    except ImportError as error:  # a tokenizer class of another version may need further packages
        saved_with = manifest["versions"].get("transformers", "of another version")
        raise ArtifactError(
            f"{root} was saved with transformers {saved_with}, and {importlib.metadata.version('transformers')} does "
            f"not read all of it without more packages; install transformers>={saved_with}, or those ({error})"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    placed: DiffusionPipeline = choice.place(pipe)
    for name, part in placed.components.items():
        if name not in parts and isinstance(part, torch.nn.Module):
            _prepare_unquantized(name, part, choice, surroundings)
    return placed


def _prepare_unquantized(name: str, network: torch.nn.Module, choice: Choice, surroundings: Surroundings) -> None:
    """Sets the type and memory layout that a network which is not quantized computes in."""
    if is_autoencoder(network):
        refuse_overflow_(network)
        if choice.runtime.device == choice.device == CPU:
            set_channels_last_(network)
    if surroundings.dtype is not None:
        return
    if choice.unquantized == torch.bfloat16 and (is_autoencoder(network) or is_text_encoder(name)):
        compute_in_bfloat16(network)
    else:
        compute_in_float32(network)


def load_stored(folder: Path, manifest: Mapping[str, Any], choice: Choice) -> torch.nn.Module:
    """Loads a verified denoiser and records where it is stored, so that it can be saved again.

    Args:
        folder: Folder of the denoiser.
        manifest: Manifest that lists its files.
        choice: Runtime, type and memory mode.

    Returns:
        The lowered denoiser.
    """
    denoiser = load_denoiser(folder, choice)
    files = manifest["files"]
    digest = files.get(f"{folder.name}/{WEIGHTS}") or files[WEIGHTS]
    config = parse(read_whole(folder / CONFIG), folder / CONFIG)
    attach(denoiser, StoredDenoiser(config, manifest, copying(folder / WEIGHTS, digest)))
    return denoiser


def _load_stored_network(root: Path, name: str, manifest: Mapping[str, Any], choice: Choice) -> torch.nn.Module:
    """Loads a quantized network beside the denoiser, and records where it is stored."""
    kind = network_class(root, name)
    network, weights = load_network(root / name, kind, choice), weights_name(kind)
    config = parse(read_whole(root / name / CONFIG), root / name / CONFIG)
    write = copying(root / name / weights, manifest["files"][f"{name}/{weights}"])
    attach(network, StoredDenoiser(config, manifest, write))
    return network


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
        checked = {component: check_denoiser(root / component)}
        for name in manifest.get("networks", {}):
            checked[name] = check_network(root / name, network_class(root, name))
    with building(root):
        networks = load_networks(root, component_types(root), omit=checked)
        empty = {name: network.to("meta") for name, network in networks}
        pipe = load_pipeline(root, components={**empty, **checked})
        require_usable(pipe, manifest)
