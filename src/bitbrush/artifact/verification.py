"""Verification of an artifact before anything of it is used."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitbrush.artifact.card import quantize_command
from bitbrush.artifact.components import QUANTIZATION, require_fitting
from bitbrush.artifact.denoiser import CONFIG, WEIGHTS
from bitbrush.artifact.documents import ArtifactError
from bitbrush.artifact.folder import CARD, MANIFEST, VerifiedFolder, verified
from bitbrush.artifact.manifest import artifact_folder, read_manifest
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
        source: Folder or hub id.

    Yields:
        The folder and the manifest.

    Raises:
        ArtifactError: Something differs, or this version no longer supports a setting; the message names it.
    """
    root = artifact_folder(source)
    manifest = read_manifest(root)
    _require_known_settings(root, manifest)
    _require_known_family(manifest["denoiser"]["family"])
    with verified(root, manifest["files"]) as folder:
        require_fitting(folder, manifest["denoiser"]["component"], manifest["versions"])
        _require_agreement(folder, manifest)
        yield root, manifest


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
    try:
        Recipe().updated(manifest["recipe"])
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{root / MANIFEST} is damaged: recipe: {error}; quantize or copy it again") from error


def _require_known_family(family: str) -> None:
    if family not in FAMILY_NAMES:
        raise ArtifactError(
            f"the denoiser is of family {family!r}; this bitbrush knows {', '.join(FAMILY_NAMES)}: upgrade bitbrush"
        )


def _require_agreement(folder: VerifiedFolder, manifest: dict[str, Any]) -> None:
    """Checks that the manifest's layers, which users read, are those of the configuration and of the tensors."""
    component = manifest["denoiser"]["component"]
    path = folder.root / component / CONFIG
    packed = folder.documents[f"{component}/{CONFIG}"][QUANTIZATION]["weight_bits"]
    listed = {entry["name"]: entry["weight_bits"] for entry in manifest["layers"] if entry["excluded"] is None}
    unlike = [name for name in {**listed, **packed} if listed.get(name) != packed.get(name)]
    if unlike:
        raise ArtifactError(f"{path} does not hold what {MANIFEST} lists: layer {unlike[0]}; quantize again")
    if f"{component}/{WEIGHTS}" not in manifest["files"]:
        raise ArtifactError(f"{path.with_name(WEIGHTS)} is missing; the artifact is incomplete: quantize it again")
    entries = TensorFile(path.with_name(WEIGHTS)).entries
    for layer in manifest["layers"]:
        name, shape = layer["name"], layer["shape"]
        stored = entries.get(f"{name}.weight")
        packed_shape = [-(-math.prod(shape) * layer["weight_bits"] // 8)]
        if stored is None or stored.shape != (packed_shape if layer["excluded"] is None else shape):
            raise ArtifactError(
                f"{path.with_name(WEIGHTS)} does not hold what {MANIFEST} lists: {name}.weight of shape {shape}; "
                "quantize again"
            )
