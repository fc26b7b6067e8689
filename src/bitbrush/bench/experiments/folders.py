"""Output folders: a run never writes into a folder that another program filled."""

from collections.abc import Collection
from pathlib import Path

from bitbrush.session.disk import require_writable

UNFINISHED = (".part", ".new", ".old")


def require_own(directory: Path, known: Collection[str], writer: str) -> None:
    """Checks that ``directory`` contains nothing but files of its writer.

    Hidden files that a killed process left unfinished are ignored.

    Args:
        directory: Output folder, which need not exist.
        known: Names that the writer writes.
        writer: Name of the writer for the message.

    Raises:
        ValueError: The folder contains something else.
        DiskError: The folder is read-only.
    """
    require_writable(directory)
    if not directory.exists():
        return
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else ["a file"]
    foreign = [name for name in names if name not in known and not (name.startswith(".") and name.endswith(UNFINISHED))]
    if foreign:
        raise ValueError(f"{directory} holds {foreign[0]}, which no {writer} wrote; choose another directory")
