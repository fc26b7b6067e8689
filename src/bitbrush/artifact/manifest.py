"""Manifest of an artifact: lookup, validation, and conversion of errors that contradict it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from packaging.version import InvalidVersion, Version
from safetensors import SafetensorError

from bitbrush.artifact.documents import ArtifactError, parse, read_whole, require_schema, unknown_keys
from bitbrush.artifact.folder import MANIFEST, require_known_names, text_digest
from bitbrush.artifact.schema import Manifest
from bitbrush.sources.model_names import did_you_mean, is_within_reach, may_be_hub_id

FORMAT = "bitbrush-artifact"
SCHEMA_VERSION = 1


def is_artifact(source: str | os.PathLike[str]) -> bool:
    """Returns whether a folder or hub id has an artifact's manifest; reading it validates its content."""
    path = _manifest_path(source)
    return path.is_file() and FORMAT.encode() in read_whole(path)


def artifact_folder(source: str | os.PathLike[str]) -> Path:
    """Returns the folder of an artifact: ``source`` itself, or the snapshot of a hub id, downloaded if necessary.

    Args:
        source: Folder or hub id.

    Returns:
        Path of the folder.

    Raises:
        ArtifactError: The hub id has a manifest, but its files are neither in the hub's cache nor reachable.
    """
    path = _manifest_path(source)
    if path.parent != Path(source):
        _download(os.fspath(source), path)
    return path.parent


def read_manifest(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the manifest of an artifact and validates it.

    Args:
        source: Folder or hub id.

    Returns:
        The manifest with the layer keys of this version.

    Raises:
        ArtifactError: The manifest is missing, damaged, of another format or of a newer schema version.
    """
    path = _manifest_path(source)
    return _validated(parse(_content(source, path), path), path)


def manifest_digest(source: str | os.PathLike[str]) -> str:
    r"""Computes the digest that identifies an artifact: SHA-256 of its manifest, with ``\n`` as line ends.

    The manifest lists the hash of every other file, so equal digests mean equal artifacts. ``sha256sum manifest.json``
    prints the same.

    Raises:
        ArtifactError: There is no manifest.
    """
    return text_digest(_content(source, _manifest_path(source)))


def _content(source: str | os.PathLike[str], path: Path) -> bytes:
    try:
        return read_whole(path)
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


def _validated(manifest: Any, path: Path) -> dict[str, Any]:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "schema_version" not in manifest:
        raise ArtifactError(
            f"{path} is not the manifest of a bitbrush artifact: quantize or copy it again, or give another folder"
        )
    schema = manifest["schema_version"]
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} was written by a newer bitbrush: it has schema version {schema}, and this one reads up to "
            f"{SCHEMA_VERSION}; upgrade bitbrush"
        )
    known = require_schema(manifest, Manifest, path)
    if (unknown := next(unknown_keys(manifest, known), None)) is not None:
        raise ArtifactError(_unknown_text(path, unknown, manifest["versions"].get("bitbrush")))
    names = [layer["name"] for layer in manifest["layers"]]
    if len(set(names)) != len(names):
        raise ArtifactError(f"{path} is damaged: layers lists a name twice; quantize or copy it again")
    return _with_current_names(manifest)


def _unknown_text(path: Path, unknown: str, writer: str | None) -> str:
    """Returns the message for a key that this version does not know, with the versions that wrote and read it."""
    own = version("bitbrush")
    if writer is not None and _is_newer(writer, own):
        return (
            f"{path} was written by a newer bitbrush, {writer}, and has {unknown}, which {own} does not know; upgrade "
            "bitbrush"
        )
    return (
        f"{path} is damaged: {unknown} is no key that bitbrush {writer or 'of an unknown version'} writes or {own} "
        "reads; quantize or copy it again"
    )


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
