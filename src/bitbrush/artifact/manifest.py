"""Manifest of an artifact: lookup, validation, and integrity checks of the listed files."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError

from bitbrush.session.digests import file_digest
from bitbrush.sources.model_names import did_you_mean, is_within_reach, may_be_hub_id

MANIFEST = "manifest.json"
FORMAT = "bitbrush-artifact"
CARD = "README.md"
SCHEMA_VERSION = 1
TEXT_SUFFIXES = (".json", ".txt", ".md", ".jinja")
"""Suffixes of files whose line ends git rewrites on checkout if ``core.autocrlf`` is set."""


class ArtifactError(ValueError):
    """Error for a directory that is no intact artifact readable by this version."""


def is_artifact(source: str | os.PathLike[str]) -> bool:
    """Returns whether a folder or hub id has an artifact's manifest; reading it validates its content."""
    path = _manifest_path(source)
    return path.is_file() and FORMAT in path.read_text(encoding="utf-8", errors="replace")


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
    """Reads the manifest of an artifact and validates its format and schema version.

    Args:
        source: Folder or hub id.

    Returns:
        The manifest with the layer keys of this version.

    Raises:
        ArtifactError: The manifest is missing, damaged, of another format or of a newer schema version.
    """
    path = _manifest_path(source)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        on_hub = ", nor has a hub id of that name in the cache or within reach" if _may_be_hub_id(source) else ""
        meant = "" if Path(source).exists() else did_you_mean(os.fspath(source), bundled=())
        raise ArtifactError(f"{source} is no bitbrush artifact: it has no {MANIFEST}{on_hub}{meant}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}; quantize again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "schema_version" not in manifest:
        raise ArtifactError(f"{path} is not the manifest of a bitbrush artifact")
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {manifest['schema_version']}; this bitbrush reads up to {SCHEMA_VERSION}: "
            "upgrade bitbrush"
        )
    return _with_current_names(manifest)


def _with_current_names(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Renames the layer key ``edge`` of earlier versions to ``high_precision``."""
    names = {"edge": "high_precision"}
    layers = [{names.get(key, key): value for key, value in layer.items()} for layer in manifest.get("layers", ())]
    return {**manifest, "layers": layers}


def require_intact(root: Path, manifest: Mapping[str, Any]) -> None:
    """Verifies the hash of every file that the manifest lists.

    The model card may be edited, although artifacts of older versions list it among the hashed files.

    Args:
        root: Folder of the artifact.
        manifest: Manifest with ``files``, SHA-256 by relative path.

    Raises:
        ArtifactError: A file is missing or its hash differs; the message names the first one.
    """
    for name, expected in manifest["files"].items():
        path = root / name
        if name == CARD:
            continue
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; the artifact is incomplete: quantize or copy it again")
        if expected not in _accepted_digests(path):
            raise ArtifactError(f"{path} was altered or truncated (SHA-256 differs): quantize or copy it again")


@contextmanager
def reading_tensors(root: Path) -> Iterator[None]:
    """Converts errors while reading an artifact's tensors to ArtifactError."""
    try:
        yield
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{root} does not hold what {MANIFEST} lists: {error}; quantize again") from error


def file_digests(root: Path) -> dict[str, str]:
    r"""Computes SHA-256 of every file by relative path, except the manifest and the model card.

    Text is hashed with ``\n`` as line ends, so that a checkout with ``\r\n`` has the same hashes.
    """
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {name: _digest(path) for name, path in files.items() if name not in (MANIFEST, CARD)}


def _accepted_digests(path: Path) -> tuple[str, ...]:
    """Returns the digest that :func:`file_digests` records and, for older versions, the digest of the raw bytes."""
    return (_digest(path), file_digest(path)) if path.suffix in TEXT_SUFFIXES else (_digest(path),)


def _digest(path: Path) -> str:
    if path.suffix not in TEXT_SUFFIXES:
        return file_digest(path)
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


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
    try:
        snapshot_download(name, revision=manifest.parent.name, allow_patterns=[MANIFEST, *files])
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ArtifactError(f"{name} is an artifact that cannot be downloaded: {error}") from error
