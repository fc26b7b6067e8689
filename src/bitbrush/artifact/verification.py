"""Verification of an artifact before anything of it is used."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

from bitbrush.artifact.card import quantize_command
from bitbrush.artifact.components import component_classes, require_fitting, require_fitting_denoiser
from bitbrush.artifact.denoiser import CONFIG, WEIGHTS
from bitbrush.artifact.documents import ArtifactError, DamagedError
from bitbrush.artifact.folder import CARD, MANIFEST, VerifiedFolder, verified
from bitbrush.artifact.manifest import artifact_folder, newer_versions_named, read_denoiser_manifest, read_manifest
from bitbrush.artifact.network import weights_name
from bitbrush.artifact.quantization_config import QUANTIZATION
from bitbrush.artifact.single_file import is_single_file, unpacked
from bitbrush.artifact.tensor_file import TensorFile
from bitbrush.methods.recipe import Recipe
from bitbrush.methods.removed import removed_setting
from bitbrush.network.families import FAMILY_NAMES
from bitbrush.session.digests import json_digest


@contextmanager
def reading(source: str | os.PathLike[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Verifies an artifact before the code inside reads it, and after it that no file changed meanwhile.

    The folder holds exactly the files that the manifest lists, with their hashes. Documents conform to their schema, to
    the classes that read them and to each other. No tensor's values are read.

    Args:
        source: Folder, single file or hub id.

    Yields:
        The folder and the manifest; the folder of a single file is temporary.

    Raises:
        ArtifactError: Something differs, or this version no longer supports a setting; the message names it.
    """
    manifest = read_manifest(source)  # before anything is unpacked or downloaded
    single = is_single_file(source)
    with unpacked(Path(source)) if single else nullcontext(artifact_folder(source)) as root:
        _require_known_settings(root, manifest)
        _require_known_family(manifest["denoiser"]["family"])
        with _agreeing(root, manifest):
            yield root, manifest


@contextmanager
def _agreeing(root: Path, manifest: dict[str, Any]) -> Iterator[None]:
    with verified(root, manifest["files"]) as folder:
        component, networks = manifest["denoiser"]["component"], manifest.get("networks", {})
        require_fitting(folder, (component, *networks), manifest["versions"])
        _require_agreement(folder, manifest["layers"], f"{component}/{WEIGHTS}")
        for name, network in networks.items():
            weights = f"{name}/{weights_name(component_classes(folder)[name])}"
            _require_agreement(folder, network["layers"], weights)
            _require_tables(folder, network["tables"], weights)
        yield


@contextmanager
def reading_denoiser(folder: Path) -> Iterator[dict[str, Any]]:
    """Verifies a denoiser's files before the code inside reads them, and after it that none changed meanwhile.

    Args:
        folder: Folder of a denoiser, alone or as a component of an artifact.

    Yields:
        The manifest that lists its files: its own, or that of the artifact.

    Raises:
        ArtifactError: There is no manifest, or something differs; the message names it.
    """
    alone = (folder / MANIFEST).exists()
    root, part = (folder, "") if alone else (folder.parent, folder.name)
    manifest = read_denoiser_manifest(folder) if alone else read_manifest(root)
    _require_known_settings(root, manifest)
    _require_known_family(manifest["denoiser"]["family"])
    if not alone and part != manifest["denoiser"]["component"]:
        raise ArtifactError(f"{folder} is quantized, and {root / MANIFEST} names another denoiser; quantize again")
    with verified(root, manifest["files"], part) as files:
        require_fitting_denoiser(files, part, manifest["versions"])
        _require_agreement(files, manifest["layers"], f"{part}/{WEIGHTS}".lstrip("/"))
        yield manifest


def verified_manifest(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the manifest of an artifact (folder or hub id) after the checks of :func:`reading`.

    Raises:
        ArtifactError: Something differs, or this version no longer supports a setting; the message names it.
    """
    with reading(source) as (_, manifest):
        return manifest


def artifact_digest(source: str | os.PathLike[str]) -> str:
    """Computes SHA-256 over the hashes of all files that affect images; the model card does not."""
    files = {name: digest for name, digest in read_manifest(source)["files"].items() if name != CARD}
    return json_digest(files)


def _require_known_settings(root: Path, manifest: dict[str, Any]) -> None:
    if (removed := removed_setting(manifest["recipe"])) is not None:
        raise ArtifactError(
            f"{root} was made with {removed}, which this bitbrush has no more; quantize again without it:\n"
            f"{quantize_command(manifest)}"
        )
    with newer_versions_named(manifest["versions"]):
        try:
            Recipe().updated(manifest["recipe"])
        except (TypeError, ValueError) as error:
            raise DamagedError(root / MANIFEST, f"recipe: {error}") from error


def _require_known_family(family: str) -> None:
    if family not in FAMILY_NAMES:
        raise ArtifactError(
            f"the denoiser is of family {family!r}; this bitbrush knows {', '.join(FAMILY_NAMES)}: upgrade bitbrush"
        )


def _require_agreement(folder: VerifiedFolder, layers: Sequence[Mapping[str, Any]], weights: str) -> None:
    """Checks that the manifest's layers, which users read, are those of the configuration and of the tensors."""
    path = folder.root / weights
    document = f"{PurePosixPath(weights).parent}/{CONFIG}".removeprefix("./")
    packed = folder.documents[document][QUANTIZATION]["weight_bits"]
    listed = {entry["name"]: entry["weight_bits"] for entry in layers if entry["excluded"] is None}
    unlike = [name for name in {**listed, **packed} if listed.get(name) != packed.get(name)]
    if unlike:
        raise ArtifactError(
            f"{path.with_name(CONFIG)} does not hold what {MANIFEST} lists: layer {unlike[0]}; quantize again"
        )
    entries = _entries(path)
    for layer in layers:
        name, shape = layer["name"], layer["shape"]
        packed_shape = [-(-math.prod(shape) * layer["weight_bits"] // 8)]
        _require_stored(path, entries, name, packed_shape if layer["excluded"] is None else shape, shape)


def _require_tables(folder: VerifiedFolder, tables: Sequence[Mapping[str, Any]], weights: str) -> None:
    """Checks that the manifest's embedding tables are those of the configuration and of the tensors."""
    path = folder.root / weights
    packed = folder.documents[f"{PurePosixPath(weights).parent}/{CONFIG}"][QUANTIZATION].get("embeddings", [])
    if sorted(packed) != sorted(table["name"] for table in tables):
        raise ArtifactError(
            f"{path.with_name(CONFIG)} does not hold what {MANIFEST} lists: embeddings {packed}; quantize again"
        )
    for table in tables:
        _require_stored(path, _entries(path), table["name"], [math.prod(table["shape"])], table["shape"])


def _entries(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        raise ArtifactError(f"{path} is missing; the artifact is incomplete: quantize it again")
    return TensorFile(path).entries


def _require_stored(
    path: Path, entries: Mapping[str, Any], name: str, stored_shape: Sequence[int], shape: Sequence[int]
) -> None:
    stored = entries.get(f"{name}.weight")
    if stored is None or stored.shape != list(stored_shape):
        raise ArtifactError(
            f"{path} does not hold what {MANIFEST} lists: {name}.weight of shape {shape}; quantize again"
        )
