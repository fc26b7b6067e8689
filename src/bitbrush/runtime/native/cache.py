"""Cache of compiled kernels: a library is loaded only if nobody but the user can have written it, and it is whole.

A library's name holds the SHA-256 of its content. So a truncated or altered file is recognized before it is loaded,
where it would end the process. One rename publishes content and digest together, so processes may compile at once.
"""

import atexit
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from bitbrush.session.digests import file_digest

PRIVATE = 0o700
"""Mode of the cache's folder and of the libraries in it."""
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class UnsafeFolder(OSError):
    """Error: others could have written into a folder, so nothing in it may be executed."""


def cached_library(folder: Path, key: str, compile_to: Callable[[Path], None]) -> Path:
    """Finds the library in the cache, or compiles it; one that is not intact is removed.

    Args:
        folder: Folder that :func:`cache_folder` returned.
        key: Digest of everything that determines the library.
        compile_to: Compiles the library to a path.

    Returns:
        Path of the library.

    Raises:
        OSError: The library cannot be written.
    """
    for path in sorted(folder.glob(f"{key}-*.so")):
        if _is_intact(path):
            return path
        path.unlink(missing_ok=True)  # another process may have removed it
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as build:
        made = Path(build) / "library.so"
        compile_to(made)
        made.chmod(PRIVATE)
        return made.replace(folder / f"{key}-{file_digest(made)}.so")


def cache_folder(folder: Path) -> Path:
    """Returns the folder, created if necessary, or a temporary one that is removed at exit, with a warning."""
    try:
        folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        _require_private(folder)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        warnings.warn(
            f"the kernels' cache {folder} is not used ({error.strerror or error}): they are compiled for this process "
            "alone; make it a folder that you own and nobody else can write to, or name another by BITBRUSH_CACHE",
            stacklevel=2,
        )
    private = Path(tempfile.mkdtemp(prefix="bitbrush-kernels-"))  # readable and writable by its owner alone
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return private


def _require_private(folder: Path) -> None:
    """Raises UnsafeFolder if somebody else owns the folder or can write into it."""
    status = folder.stat()
    if not _is_own(status):
        raise UnsafeFolder(f"it belongs to user {status.st_uid}")
    if _is_writable_by_others(status):
        raise UnsafeFolder(f"its mode {stat.S_IMODE(status.st_mode):o} lets others write into it")


def _is_intact(path: Path) -> bool:
    """Tells whether a library is a file of the user that nobody else can write, with the content that its name says."""
    status = path.lstat()
    trusted = stat.S_ISREG(status.st_mode) and _is_own(status) and not _is_writable_by_others(status)
    return trusted and path.stem.rpartition("-")[2] == file_digest(path)


def _is_own(status: os.stat_result) -> bool:
    """Tells whether the user owns a file; Windows has access lists instead, which a user's folder inherits."""
    return not hasattr(os, "getuid") or status.st_uid == os.getuid()


def _is_writable_by_others(status: os.stat_result) -> bool:
    return hasattr(os, "getuid") and bool(status.st_mode & WRITABLE_BY_OTHERS)
