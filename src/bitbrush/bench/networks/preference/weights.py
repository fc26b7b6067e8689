"""Weights of a metric as a user has them: a file, or a folder of files."""

import hashlib
from pathlib import Path


def weights_digest(weights: str) -> str:
    """Computes the SHA-256 of a file, or of all files of a folder with their names.

    Raises:
        ValueError: There is neither.
    """
    path = Path(weights)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise ValueError(f"there are no weights at {weights!r}; name their file or folder")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path.parent)}\n".encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
