"""Checks of model names without loading anything, and suggestions for mistyped names."""

import difflib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from bitbrush.zoo import MODELS, model_path

MODEL_INDEX = "model_index.json"
SINGLE_FILE = ".safetensors"
SECONDS_TO_REACH = 1.0
LIKENESS = 0.6
"""Smallest similarity of suggested names, as difflib measures it."""
SUGGESTIONS = 3


class UnknownModelError(ValueError):
    """No pipeline exists under the given name."""


def require_known(model: str | os.PathLike[str], revision: str | None = None) -> None:
    """Checks a name in about a second, even without a network; the name may still belong to something else.

    Args:
        model: A bundled name, a path, or a hub id.
        revision: Branch, tag or commit of a hub id.

    Raises:
        UnknownModelError: Nothing is found and, for a hub id, the hub cannot be reached either.
    """
    name = os.fspath(model)
    if model_path(name) is not None or Path(name).exists():
        return
    if Path(name).suffix == SINGLE_FILE:
        raise UnknownModelError(f"there is no file {name}{did_you_mean(name)}")
    requirement = "" if revision is None else f" with revision {revision!r}"
    if not may_be_hub_id(name):
        raise UnknownModelError(unknown_text(name, requirement))
    if not _is_cached(name, MODEL_INDEX, revision) and (reason := _out_of_reach()):
        raise UnknownModelError(unknown_text(name, requirement, reason))


def portable_name(model: str | os.PathLike[str]) -> str:
    """Returns the name under which a model is recorded: a path's last part, so that records hold no local paths."""
    name = os.fspath(model)
    path = Path(name)
    is_local = path.exists() or path.is_absolute() or name.startswith((".", "~"))
    return Path(os.path.realpath(path)).name if is_local and model_path(name) is None else name


def unknown_text(model: str, requirement: str = "", reason: str = "") -> str:
    """Returns the message for a model that is found nowhere.

    Args:
        model: Name of the model.
        requirement: Further requirements, such as a revision.
        reason: Why the hub has no such model, or cannot be reached.
    """
    return (
        f"model {model!r}{requirement} is neither bundled ({', '.join(MODELS)}), nor a directory with {MODEL_INDEX}, "
        f"nor in the hub's cache or reachable on the hub{f' ({reason})' if reason else ''}{did_you_mean(model)}"
    )


def is_within_reach(name: str, file: str) -> bool:
    """Tells, in about a second, whether a file of a hub id is in the cache or the hub can be reached."""
    return _is_cached(name, file, None) or not _out_of_reach()


def did_you_mean(model: str, bundled: Sequence[str] = tuple(MODELS)) -> str:
    """Returns a suggestion like ``; did you mean 'emoji-sd'?``, or nothing.

    It considers similar names that are bundled, in the same folder, or in the hub's cache.
    """
    path = Path(model)
    near = {str(path.with_name(name)): name for name in _models_in(path.parent)}
    candidates = {**{name: name for name in (*filter(_is_pipeline, bundled), *_cached_ids())}, **near}
    by_name: dict[str, str] = {}
    for suggestion, name in candidates.items():
        by_name.setdefault(name.lower(), suggestion)
    texts = [model.lower(), path.name.lower()]
    close = [match for text in texts for match in difflib.get_close_matches(text, by_name, SUGGESTIONS, LIKENESS)]
    suggestions = list(dict.fromkeys(by_name[match] for match in close))[:SUGGESTIONS]
    return f"; did you mean {' or '.join(map(repr, suggestions))}?" if suggestions else ""


def _is_pipeline(name: str) -> bool:
    path = model_path(name)
    return path is not None and (path / MODEL_INDEX).exists()


def _models_in(folder: Path) -> Iterator[str]:
    """Yields the names of pipelines, artifacts and checkpoints in a folder."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix == SINGLE_FILE or (path / MODEL_INDEX).is_file():
            yield path.name


def _cached_ids() -> Iterator[str]:
    """Yields the hub ids in the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for path in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        yield path.name.removeprefix("models--").replace("--", "/", 1)


def may_be_hub_id(name: str) -> bool:
    """Tells whether a name is valid as a hub id of a pipeline."""
    if name.count("/") != 1:
        return False  # other ids exist on the hub, none of them a pipeline
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _is_cached(name: str, file: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, file, revision=revision), str)


def _out_of_reach() -> str:
    """Returns why the hub cannot be reached; empty if it seems reachable."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    address = urlsplit(ENDPOINT)
    if address.scheme in getproxies() or address.hostname is None:
        return ""  # a proxy may reach hosts that this machine cannot
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), SECONDS_TO_REACH).close()
    except OSError as error:
        return f"{address.hostname} cannot be reached: {error.strerror or error}"
    return ""
