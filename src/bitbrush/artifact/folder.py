"""Folder of an artifact: exactly the files that its manifest lists, of known kinds, with the hashes recorded there."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitbrush.artifact.documents import ArtifactError, limited, opening, parse

MANIFEST = "manifest.json"
CARD = "README.md"
BESIDE = (CARD, "LICENSE", "LICENSE.md", "LICENSE.txt", ".gitattributes", ".gitignore", ".git", ".cache")
"""Names beside the manifest that it does not list: what is for people, for git, and the hub's local cache."""
TEXT_SUFFIXES = (".json", ".txt", ".md", ".jinja")
"""Suffixes of files whose line ends git rewrites on checkout if ``core.autocrlf`` is set."""
WEIGHT_SUFFIX = ".safetensors"
_KNOWN = re.compile(
    r"model_index\.json|[a-zA-Z]\w*/(?:"
    r"(?:config|generation_config|scheduler_config|preprocessor_config|processor_config|tokenizer|tokenizer_config"
    r"|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|(?:merges|vocab)\.txt|chat_template\.jinja|(?:spiece|tokenizer|sentencepiece\.bpe)\.model"
    r"|(?:diffusion_pytorch_model|model)(?:-\d{5}-of-\d{5})?\.safetensors"
    r"|(?:diffusion_pytorch_model|model)\.safetensors\.index\.json)"
)
"""Names of the files that libraries read; code, pickles and adapters have others."""
_KNOWN_OF_DENOISER = re.compile(r"config\.json|diffusion_pytorch_model\.safetensors")
"""Names of the files of a denoiser without a pipeline."""
_AGAIN = "quantize or copy the artifact again"

Identity = tuple[int, ...]


@dataclass(frozen=True)
class VerifiedFolder:
    """Folder whose files were verified.

    Attributes:
        root: Path of the folder.
        documents: Parsed JSON files by relative path, from the bytes that were hashed.
    """

    root: Path
    documents: Mapping[str, Any]
    _identities: Mapping[str, Identity]

    def require_unchanged(self) -> None:
        """Checks that no file was replaced or written since its hash was computed, so what was hashed is what was read.

        Raises:
            ArtifactError: A file changed; the message names it.
        """
        for name, identity in self._identities.items():
            path = self.root / name
            if not path.exists() or _identity(path.stat()) != identity:
                raise ArtifactError(f"{path} changed while it was read; load the artifact again")


@contextmanager
def verified(root: Path, files: Mapping[str, str], part: str | None = None) -> Iterator[VerifiedFolder]:
    """Verifies a folder before the code inside reads it, and that nothing changed meanwhile after it.

    The model card may be edited, although artifacts of older versions list it among the hashed files.

    Args:
        root: Folder of the artifact.
        files: SHA-256 by relative path.
        part: Folder of the only component that is read, or "" for a folder with a denoiser alone; None for all.

    Yields:
        The folder.

    Raises:
        ArtifactError: A file is missing, unlisted, of an unknown kind, or altered; the message names the first one.
    """
    listed = {name: digest for name, digest in files.items() if name != CARD and _is_in(name, part)}
    folder = _verify(root, listed, part)
    yield folder
    folder.require_unchanged()


def _is_in(name: str, part: str | None) -> bool:
    return not part or name.startswith(f"{part}/")


def _verify(root: Path, files: Mapping[str, str], part: str | None) -> VerifiedFolder:
    found = {name: path for name, path in _entries(root) if _is_in(name, part)}
    require_known_names(root, files, _KNOWN_OF_DENOISER if part == "" else _KNOWN)
    for name in files:
        if name not in found:
            raise ArtifactError(f"{root / name} is missing; the artifact is incomplete: quantize or copy it again")
    if unlisted := sorted(found.keys() - files.keys()):
        raise ArtifactError(
            f"{root / unlisted[0]} is not listed in {MANIFEST}: remove it; if the pipeline needs it, {_AGAIN}"
        )
    documents: dict[str, Any] = {}
    identities = {}
    for name, expected in files.items():
        _require_inside(found[name], root)
        with opening(found[name]) as file:
            identities[name] = _identity(os.fstat(file.fileno()))
            if found[name].suffix == WEIGHT_SUFFIX:
                accepted: tuple[str, ...] = (hashlib.file_digest(file, "sha256").hexdigest(),)
                content = None
            else:
                content = limited(file, found[name])
                accepted = _digest(content, name), hashlib.sha256(content).hexdigest()
        if expected not in accepted:
            raise ArtifactError(f"{root / name} was altered or truncated (SHA-256 differs): quantize or copy it again")
        if content is not None and found[name].suffix == ".json":
            documents[name] = parse(content, root / name)
    return VerifiedFolder(root, documents, identities)


def require_known_names(root: Path, names: Iterable[str], known: re.Pattern[str] = _KNOWN) -> None:
    """Rejects names of files that no pipeline in safetensors and JSON has: code, pickles, adapters, other folders.

    The model card is accepted, as artifacts of older versions list it.

    Raises:
        ArtifactError: A name is unknown.
    """
    for name in names:
        if name != CARD and not known.fullmatch(name):
            raise ArtifactError(
                f"{root / MANIFEST} lists {name}, which is no file of a pipeline in safetensors and JSON; {_AGAIN}"
            )


def file_digests(root: Path) -> dict[str, str]:
    r"""Computes SHA-256 of every file by relative path, except the manifest and those in ``BESIDE``.

    Text is hashed with ``\n`` as line ends, so that a checkout with ``\r\n`` has the same hashes.
    """
    digests = {}
    for name, path in sorted(_entries(root)):
        with opening(path) as file:
            if path.suffix in TEXT_SUFFIXES:
                digests[name] = _digest(limited(file, path), name)
            else:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def text_digest(content: bytes) -> str:
    r"""Computes SHA-256 of text with ``\n`` as line ends."""
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


def _digest(content: bytes, name: str) -> str:
    return text_digest(content) if name.endswith(TEXT_SUFFIXES) else hashlib.sha256(content).hexdigest()


def _entries(root: Path) -> Iterator[tuple[str, Path]]:
    """Yields name and path of everything in the folder and its components but folders, the manifest and ``BESIDE``."""
    for entry in os.scandir(root):
        if entry.name in (MANIFEST, *BESIDE):
            continue
        if not entry.is_dir(follow_symlinks=False):
            yield entry.name, Path(entry.path)
            continue
        for inner in os.scandir(entry):
            yield f"{entry.name}/{inner.name}", Path(inner.path)


def _require_inside(path: Path, root: Path) -> None:
    """Rejects links that lead out of the folder; those of a snapshot in the hub's cache lead to its ``blobs``."""
    if not path.is_symlink():
        return
    target, home = Path(os.path.realpath(path)), root.resolve()  # resolve() raises for a loop, by Python's version
    allowed = [home, *(place.parent / "blobs" for place in home.parents if place.name == "snapshots")]
    if not any(target.is_relative_to(one) for one in allowed):
        raise ArtifactError(f"{path} is a link that leads out of the artifact; {_AGAIN}")


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
