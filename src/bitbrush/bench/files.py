"""Files that are there whole or not at all, and folders that are ours."""

import os
from collections.abc import Collection
from pathlib import Path


def write_whole(content: str | bytes, path: Path) -> None:
    """Writes all of `content` (text as UTF-8) or nothing: nobody reads half a file, a failure leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")  # the same folder, as a rename must not cross disks
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def require_own(directory: Path, known: Collection[str], writer: str) -> None:
    """Raises ValueError if something stands at ``directory`` that is not ``known`` to be written by a ``writer``.

    What a killed process has left half-written, a hidden ``.part``, is overlooked.
    """
    if not directory.exists():
        return
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else ["a file"]
    foreign = [name for name in names if name not in known and not (name.startswith(".") and name.endswith(".part"))]
    if foreign:
        raise ValueError(f"{directory} holds {foreign[0]}, which no {writer} wrote; choose another directory")
