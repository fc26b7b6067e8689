"""Saving of quantized pipelines as artifacts: folders with packed integers and a manifest, written atomically."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitbrush.artifact.denoiser import WEIGHTS
from bitbrush.artifact.documents import ArtifactError
from bitbrush.artifact.folder import MANIFEST
from bitbrush.artifact.license import source_license
from bitbrush.artifact.loading import load, load_with, read_layer, read_layers, verify
from bitbrush.artifact.manifest import FORMAT, SCHEMA_VERSION, read_manifest
from bitbrush.artifact.network import network_config, network_tensors, weights_name
from bitbrush.artifact.single_file import is_single_file, pack
from bitbrush.artifact.sizes import bytes_to_save, checkpoint_bytes
from bitbrush.artifact.stored import StoredDenoiser, packing
from bitbrush.artifact.verification import artifact_digest
from bitbrush.artifact.writing import (
    packed_tensors,
    stored_config,
    versions,
    write_card,
    write_components,
    write_denoiser,
    write_manifest,
)
from bitbrush.methods.recipe import Recipe
from bitbrush.network.layers import LayerSpec
from bitbrush.network.narrow import float32_bytes
from bitbrush.network.other_networks import QuantizedNetwork
from bitbrush.quantization.quantize import Quantization
from bitbrush.session.disk import require_replaceable, require_space, writing, writing_whole
from bitbrush.session.journal import mark_saved
from bitbrush.session.outputs import claimed
from bitbrush.session.replacing import complete_folder, folder_beside, remove_folder
from bitbrush.sources.identity import model_digest
from bitbrush.sources.model_names import SINGLE_FILE, portable_name
from bitbrush.sources.models import ModelOptions

__all__ = [
    "artifact_digest",
    "load",
    "load_with",
    "placing",
    "read_layer",
    "read_layers",
    "require_free",
    "result_file",
    "save",
    "verify",
]


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
    if directory.is_file() and not is_single_file(directory):
        raise ValueError(f"{directory} exists and is no bitbrush artifact to replace; choose another output")
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
        directory: Path of the artifact; one that ends in .safetensors is written as a single file.
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
        require_space(target, 2 * size if _is_single(target) else size)
        with writing(target, size), placing(target, work) as fresh:
            _write(quantization, fresh, origin, sizes)
        if work is not None:
            remove_folder(work)
    return target


@contextmanager
def placing(target: Path, work: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path for the folder of an artifact, and puts it in place at the end if it loads.

    Args:
        target: Path of the artifact; one that ends in .safetensors becomes a single file.
        work: Folder of the finished work, which is marked as saved.

    Raises:
        ValueError: The artifact does not load.
    """
    if not _is_single(target):
        with complete_folder(target) as fresh:
            yield fresh
            _require_loadable(fresh)
            _mark(work, fresh / MANIFEST)
        return
    with folder_beside(target) as folder:
        yield folder
        _require_loadable(folder)
        with writing_whole(target) as fresh:
            pack(folder, fresh)
            _mark(work, fresh)


def result_file(output: Path) -> Path:
    """Returns the file that identifies a finished artifact: its manifest, or the single file itself."""
    return output if _is_single(output) else output / MANIFEST


def _is_single(target: Path) -> bool:
    return target.suffix == SINGLE_FILE and not target.is_dir()


def _mark(work: Path | None, result: Path) -> None:
    if work is not None:
        mark_saved(work, result)


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
        names = ("base_model_digest", "base_model_options", "base_model_license")
        kept = {key: manifest[key] for key in names if key in manifest}
        origin = {"base_model": portable_name(manifest["base_model"]), "base_model_options": {}, **kept}
        return {**origin, "recalibrated_from": manifest.get("recalibrated_from", earlier)}
    if base_model is None:
        raise ValueError("base_model is needed: the name, folder or hub id of the full-precision pipeline")
    terms = source_license(base_model, options)
    return {
        "base_model": portable_name(base_model),
        "base_model_digest": model_digest(quantization.original or quantization.source),
        "base_model_options": options.facts(),
        **({} if terms is None else {"base_model_license": terms}),
    }


@dataclass(frozen=True)
class _Sizes:
    """Entries of a manifest on the sizes of the input networks, those beside the denoiser by name."""

    denoiser: Mapping[str, int]
    networks: Mapping[str, Mapping[str, int]]


def _write(quantization: Quantization, root: Path, origin: dict[str, Any], sizes: _Sizes) -> None:
    pipe, component = quantization.source, quantization.family.component
    root.mkdir()
    write_components(pipe, (component, *quantization.networks), root)
    denoiser = getattr(pipe, component)
    layers = {layer.name: layer for layer in quantization.outcome.layers}
    packed = packed_tensors(denoiser, layers)
    write_denoiser(StoredDenoiser(stored_config(denoiser, layers), {}, packing(packed)), root / component)
    for name, quantized in quantization.networks.items():
        network = getattr(pipe, name)
        stored = StoredDenoiser(network_config(network, quantized), {}, packing(network_tensors(network, quantized)))
        write_denoiser(stored, root / name, weights_name(type(network)))
    write_card(root, write_manifest(root, _manifest(quantization, origin, sizes, root)))


def _model_sizes(quantization: Quantization, base_model: str | None, options: ModelOptions) -> _Sizes:
    """Returns the sizes of the input networks; a recalibrated artifact inherits them from its predecessor."""
    if quantization.recalibrated is not None:
        earlier = quantization.recalibrated["manifest"]["denoiser"]
        return _Sizes({key: earlier[key] for key in ("full_precision_bytes", "checkpoint_bytes") if key in earlier}, {})
    pipe, component = quantization.original or quantization.source, quantization.family.component
    sizes = {
        name: {
            "full_precision_bytes": float32_bytes(getattr(pipe, name)),
            "checkpoint_bytes": checkpoint_bytes(str(base_model), options, name, getattr(pipe, name)),
        }
        for name in (component, *quantization.networks)
    }
    return _Sizes(sizes.pop(component), sizes)


def _layer_entries(specs: Iterable[LayerSpec]) -> list[dict[str, Any]]:
    """Returns the entries of layers in a manifest."""
    return [{**asdict(spec), "shape": list(spec.shape)} for spec in specs]


def _table_entries(quantized: QuantizedNetwork) -> list[dict[str, Any]]:
    tables = quantized.embeddings.tables
    return [{"name": name, "shape": list(weight.w_q.shape)} for name, weight in tables.items()]


def _network_entries(quantization: Quantization, root: Path, sizes: _Sizes) -> dict[str, Any]:
    """Returns the manifest's entry on quantized networks beside the denoiser; none if there are none."""
    entries = {
        name: {
            "bytes": (root / name / weights_name(type(getattr(quantization.source, name)))).stat().st_size,
            **sizes.networks[name],
            "layers": _layer_entries(quantized.specs),
            "tables": _table_entries(quantized),
        }
        for name, quantized in quantization.networks.items()
    }
    return {"networks": entries} if entries else {}


def _product_bits(quantization: Quantization) -> dict[str, Any]:
    bits = quantization.outcome.product_bits
    return {} if bits is None else {"product_bits": asdict(bits)}


def _manifest(quantization: Quantization, origin: dict[str, Any], sizes: _Sizes, root: Path) -> dict[str, Any]:
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
            **_product_bits(quantization),
        },
        "denoiser": {
            "component": component,
            "family": quantization.family.name,
            "bytes": (root / component / WEIGHTS).stat().st_size,
            **sizes.denoiser,
        },
        "layers": _layer_entries(quantization.outcome.specs),
        **_network_entries(quantization, root, sizes),
        "processes": quantization.processes,
        "cost": {phase: asdict(cost) for phase, cost in quantization.costs.items()},
        "versions": versions(),
    }
