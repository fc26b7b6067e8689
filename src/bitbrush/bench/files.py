"""Files that are there whole or not at all, and folders that are ours."""

from collections.abc import Collection
from pathlib import Path

from bitbrush.timeline.disk import write_whole

__all__ = ["require_own", "write_whole"]


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
