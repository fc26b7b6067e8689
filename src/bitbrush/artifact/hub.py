"""Artifacts on the hub, fetched with the options of ``from_pretrained``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from bitbrush.artifact.denoiser import CONFIG, WEIGHTS
from bitbrush.artifact.documents import ArtifactError
from bitbrush.artifact.folder import MANIFEST, require_known_names
from bitbrush.artifact.manifest import is_artifact, read_manifest
from bitbrush.sources.model_names import is_within_reach, may_be_hub_id

OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""Options of ``from_pretrained`` that say where and how the hub's files are fetched."""
_UNREACHABLE = (OSError, ValueError, HfHubHTTPError)


def fetch_artifact(name: str, options: Mapping[str, Any]) -> Path | None:
    """Fetches an artifact into the hub's cache; only its manifest is asked for if the name is another model's.

    Args:
        name: Hub id, or any other text.
        options: Values for names in ``OPTIONS``.

    Returns:
        The folder of the snapshot; None if no artifact has this name.

    Raises:
        ArtifactError: The manifest exists, and the other files cannot be fetched.
    """
    known = _known(options)
    local = known.get("local_files_only") or "cache_dir" in known
    if not may_be_hub_id(name) or not (local or is_within_reach(name, MANIFEST)):
        return None
    try:
        root = Path(hf_hub_download(name, MANIFEST, **known)).parent
    except _UNREACHABLE:
        return None
    if not is_artifact(root):
        return None
    files = read_manifest(root)["files"]
    require_known_names(root, files)  # a pattern would fetch anything
    try:
        snapshot_download(name, **{**known, "revision": root.name}, allow_patterns=[MANIFEST, *files])
    except _UNREACHABLE as error:
        raise ArtifactError(f"{name} is an artifact that cannot be downloaded: {error}") from error
    return root


def fetch_denoiser(name: str, subfolder: str, options: Mapping[str, Any]) -> Path:
    """Fetches a quantized denoiser and the manifest that lists its files, and returns its folder.

    Args:
        name: Hub id.
        subfolder: Folder of the denoiser within the repository, or "".
        options: Values for names in ``OPTIONS``.

    Raises:
        ArtifactError: A file cannot be fetched.
    """
    known, prefix = _known(options), f"{subfolder}/".lstrip("/")
    try:
        config = Path(hf_hub_download(name, f"{prefix}{CONFIG}", **known))
        hf_hub_download(name, f"{prefix}{WEIGHTS}", **known)
    except _UNREACHABLE as error:
        raise ArtifactError(f"{name} has a quantized denoiser that cannot be downloaded: {error}") from error
    for place in dict.fromkeys((prefix, "")):
        try:
            hf_hub_download(name, f"{place}{MANIFEST}", **known)
        except _UNREACHABLE:
            continue
        return config.parent
    raise ArtifactError(f"{name} has a quantized denoiser and no {MANIFEST}; upload the artifact whole")


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in OPTIONS if options.get(key) is not None}
