"""Manifest of an artifact: lookup, validation, and conversion of errors that contradict it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from packaging.version import InvalidVersion, Version
from safetensors import SafetensorError

from bitbrush.artifact.documents import ArtifactError, DamagedError, parse, read_whole, require_schema, unknown_keys
from bitbrush.artifact.folder import MANIFEST, require_known_names, text_digest
from bitbrush.artifact.schema import DenoiserManifest, Manifest
from bitbrush.artifact.single_file import is_single_file, packed_manifest
from bitbrush.sources.model_names import did_you_mean, is_within_reach, may_be_hub_id

FORMAT = "bitbrush-artifact"
DENOISER_FORMAT = "bitbrush-denoiser"
"""Format of the manifest of a denoiser without a pipeline."""
SCHEMA_VERSION = 1


def is_artifact(source: str | os.PathLike[str]) -> bool:
    """Returns whether a folder, file or hub id has an artifact's manifest; reading it validates its content."""
    if is_single_file(source):
        with suppress(ArtifactError):
            return FORMAT.encode() in packed_manifest(Path(source))
        return False
    path = _manifest_path(source)
    return path.is_file() and FORMAT.encode() in read_whole(path)


def artifact_folder(source: str | os.PathLike[str]) -> Path:
    """Returns the folder of an artifact: ``source`` itself, or the snapshot of a hub id, downloaded if necessary.

    Args:
        source: Folder or hub id.

    Returns:
        Path of the folder.

    Raises:
        ArtifactError: The hub id has a manifest, but its files are neither in the hub's cache nor reachable; or
            ``source`` is a single file.
    """
    if is_single_file(source):
        raise ArtifactError(
            f"{source} is a single file, and a folder is needed: bitbrush.load({os.fspath(source)!r})"
            ".save_pretrained(DIR) writes one"
        )
    path = _manifest_path(source)
    if path.parent != Path(source):
        _download(os.fspath(source), path)
    return path.parent


def read_manifest(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the manifest of an artifact and validates it.

    Args:
        source: Folder, single file or hub id.

    Returns:
        The manifest with the layer keys of this version.

    Raises:
        ArtifactError: The manifest is missing, damaged, of another format or of a newer schema version.
    """
    path = Path(source) if is_single_file(source) else _manifest_path(source)
    return _validated(parse(_content(source, path), path), path)


def read_denoiser_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a denoiser without a pipeline and validates it.

    Raises:
        ArtifactError: The manifest is damaged, of another format or of a newer schema version.
    """
    path = folder / MANIFEST
    return _validated(parse(read_whole(path), path), path, DENOISER_FORMAT, DenoiserManifest)


def manifest_digest(source: str | os.PathLike[str]) -> str:
    r"""Computes the digest that identifies an artifact: SHA-256 of its manifest, with ``\n`` as line ends.

    The manifest lists the hash of every other file, so equal digests mean equal artifacts. ``sha256sum manifest.json``
    prints the same.

    Raises:
        ArtifactError: There is no manifest.
    """
    path = Path(source) if is_single_file(source) else _manifest_path(source)
    return text_digest(_content(source, path))


def _content(source: str | os.PathLike[str], path: Path) -> bytes:
    try:
        return packed_manifest(path) if is_single_file(path) else read_whole(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{source} is no bitbrush artifact: {_missing_text(source)}") from None


def _missing_text(source: str | os.PathLike[str]) -> str:
    place = Path(source)
    if place.is_dir():
        return f"it has no {MANIFEST}"
    if place.exists():
        return "it is no folder"
    on_hub = ", nor does a hub id of that name in the cache or within reach" if _may_be_hub_id(source) else ""
    return f"it does not exist{on_hub}{did_you_mean(os.fspath(source), bundled=())}"


def _validated(manifest: Any, path: Path, form: str = FORMAT, kind: Any = Manifest) -> dict[str, Any]:
    if isinstance(manifest, dict) and manifest.get("format") == DENOISER_FORMAT != form:
        raise ArtifactError(
            f"{path.parent} holds a denoiser without a pipeline: load it with its class, e.g. "
            "UNet2DConditionModel.from_pretrained(DIR), and give it to a pipeline: "
            "DiffusionPipeline.from_pretrained(BASE_MODEL, unet=unet)"
        )
    if not isinstance(manifest, dict) or manifest.get("format") != form or "schema_version" not in manifest:
        raise ArtifactError(
            f"{path} is not the manifest of a bitbrush artifact: quantize or copy it again, or give another folder"
        )
    schema = manifest["schema_version"]
    if isinstance(schema, int | float) and schema > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} was written by a newer bitbrush: it has schema version {schema}, and this one reads up to "
            f"{SCHEMA_VERSION}; upgrade bitbrush"
        )
    with newer_versions_named(manifest.get("versions")):
        known = require_schema(manifest, kind, path)
        if (unknown := next(unknown_keys(manifest, known), None)) is not None:
            writer = manifest["versions"].get("bitbrush", "of an unknown version")
            raise DamagedError(
                path, f"{unknown} is no key that bitbrush {writer} writes or {version('bitbrush')} reads"
            )
        names = [layer["name"] for layer in manifest["layers"]]
        if len(set(names)) != len(names):
            raise DamagedError(path, "layers lists a name twice")
    return _with_current_names(manifest)


@contextmanager
def newer_versions_named(versions: Any) -> Iterator[None]:
    """Turns the damage of a document that a newer bitbrush wrote into the advice to upgrade.

    Args:
        versions: Versions of the libraries that wrote it, as its manifest has them; of any type.

    Raises:
        ArtifactError: The document does not conform; the message names the version if it is newer.
    """
    try:
        yield
    except DamagedError as error:
        writer, own = versions.get("bitbrush") if isinstance(versions, dict) else None, version("bitbrush")
        if not isinstance(writer, str) or not _is_newer(writer, own):
            raise
        raise ArtifactError(
            f"{error.path} was written by a newer bitbrush, {writer}, and {own} cannot read it ({error.problem}); "
            "upgrade bitbrush"
        ) from error


def _is_newer(one: str, other: str) -> bool:
    try:
        return Version(one) > Version(other)
    except InvalidVersion:
        return False


def _with_current_names(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Renames the layer key ``edge`` of earlier versions to ``high_precision``."""
    names = {"edge": "high_precision"}
    layers = [{names.get(key, key): value for key, value in layer.items()} for layer in manifest["layers"]]
    return {**manifest, "layers": layers}


@contextmanager
def reading_tensors(root: Path) -> Iterator[None]:
    """Converts errors while reading an artifact's tensors to ArtifactError."""
    try:
        yield
    except ArtifactError:
        raise
    except (
        SafetensorError,
        AttributeError,
        KeyError,
        ValueError,
        RuntimeError,
    ) as error:  # no such layer, no such tensor
        raise ArtifactError(f"{root} does not hold what {MANIFEST} lists: {error}; quantize again") from error


def _manifest_path(source: str | os.PathLike[str]) -> Path:
    """Returns the path of the manifest in the folder, or in the hub's cache for a hub id with a manifest."""
    if _may_be_hub_id(source) and is_within_reach(os.fspath(source), MANIFEST):
        try:
            return _manifest_on_hub(os.fspath(source))
        except (OSError, ValueError, HfHubHTTPError):
            pass  # the caller that needs an artifact reports that it is missing
    return Path(source) / MANIFEST


@cache  # a process reads one revision throughout
def _manifest_on_hub(name: str) -> Path:
    return Path(hf_hub_download(name, MANIFEST))


def _may_be_hub_id(source: str | os.PathLike[str]) -> bool:
    return may_be_hub_id(os.fspath(source)) and not Path(source).exists()


def _download(name: str, manifest: Path) -> None:
    """Downloads the remaining files of the snapshot that contains ``manifest``."""
    files = read_manifest(manifest.parent)["files"]
    require_known_names(manifest.parent, files)  # a pattern would download anything
    try:
        snapshot_download(name, revision=manifest.parent.name, allow_patterns=[MANIFEST, *files])
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ArtifactError(f"{name} is an artifact that cannot be downloaded: {error}") from error
