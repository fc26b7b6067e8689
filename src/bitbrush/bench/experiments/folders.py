"""Output folders: a run never writes into a folder that another program filled."""

from collections.abc import Collection
from pathlib import Path

from bitbrush.session.disk import require_writable

UNFINISHED = (".part", ".new", ".old")


def require_own(directory: Path, known: Collection[str], writer: str) -> None:
    """Raises ValueError if something stands at ``directory`` that is not ``known`` to be written by a ``writer``.

    What a killed process has left unfinished, hidden files and folders, is overlooked. Raises DiskError for a place
    that is read-only.
    """
    require_writable(directory)
    if not directory.exists():
        return
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else ["a file"]
    foreign = [name for name in names if name not in known and not (name.startswith(".") and name.endswith(UNFINISHED))]
    if foreign:
        raise ValueError(f"{directory} holds {foreign[0]}, which no {writer} wrote; choose another directory")
