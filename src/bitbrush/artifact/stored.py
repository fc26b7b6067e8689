"""Stored form of a lowered denoiser, kept beside it so that it can be saved again."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from bitbrush.artifact.documents import ArtifactError

_ATTRIBUTE = "bitbrush_stored"


@dataclass(frozen=True)
class StoredDenoiser:
    """Documents and weights of a denoiser as an artifact holds them.

    Attributes:
        config: Content of its ``config.json``.
        manifest: Entries of a manifest on the denoiser and its origin.
        write: Writes the file of packed weights to a path.
    """

    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    write: Callable[[Path], None]

    def __deepcopy__(self, _: Any) -> "StoredDenoiser":
        """Returns itself: copies of a denoiser are saved alike."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves nothing in a pickle, which may be read where the file is not."""
        return _nothing, ()


def _nothing() -> None:
    """Stands for a stored form that was pickled."""


def attach(denoiser: nn.Module, stored: StoredDenoiser) -> None:
    """Records the stored form of a lowered denoiser."""
    object.__setattr__(denoiser, _ATTRIBUTE, stored)


def stored_of(denoiser: Any) -> StoredDenoiser | None:
    """Returns the stored form of a denoiser; None if it is not known."""
    found = vars(denoiser).get(_ATTRIBUTE) if isinstance(denoiser, nn.Module) else None
    return found if isinstance(found, StoredDenoiser) else None


def copying(file: Path, digest: str) -> Callable[[Path], None]:
    """Returns a function that copies ``file`` and refuses it if its SHA-256 is not ``digest`` any more."""

    def write(path: Path) -> None:
        try:
            shutil.copyfile(file, path)
        except FileNotFoundError:
            raise ValueError(f"{file}, from which the denoiser was loaded, is gone; load it again to save it") from None
        with path.open("rb") as copied:
            found = hashlib.file_digest(copied, "sha256").hexdigest()
        if found != digest:
            raise ArtifactError(f"{file} changed since the denoiser was loaded; load it again to save it")

    return write


def packing(tensors: Mapping[str, Tensor]) -> Callable[[Path], None]:
    """Returns a function that writes packed tensors, which it keeps in memory."""
    return lambda path: save_file(dict(tensors), path, metadata={"format": "pt"})
