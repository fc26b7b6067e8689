"""Writing to a disk that may be full or read-only: what cannot be written is refused by name, with the remedy."""

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_NUMBER = re.compile(r"os error (\d+)")
"""How safetensors reports the system's errors."""


class DiskError(OSError, ValueError):
    """A file could not be written, for want of room or of permission."""


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Names ``path`` in errors of the disk.

    Args:
        path: What is written inside.
        size: Bytes that it takes, where that is known.

    Raises:
        DiskError: The disk is full or read-only; the message names the path, the need and the remedy.
    """
    try:
        yield
    except DiskError:
        raise
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        if number in FULL:
            limit = "; the size of a file is limited here, see ulimit -f" if number == errno.EFBIG else ""
            raise DiskError(full_text(path, size) + limit) from error
        if number in READ_ONLY:
            raise DiskError(read_only_text(path, nearest_folder(path.parent))) from error
        raise


@contextmanager
def writing_whole(path: Path, size: int | None = None) -> Iterator[Path]:
    """Hands out a path to write to, which replaces ``path`` at the end: nobody reads half a file.

    It is in the same folder, since a rename must not cross disks, and no two threads share it. A failure removes it and
    leaves the old file.

    Raises:
        DiskError: As :func:`writing`, whose arguments these are.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    with writing(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_whole(content: str | bytes, path: Path) -> None:
    """Writes all of ``content`` (text as UTF-8) or nothing.

    Raises:
        DiskError: As :func:`writing`.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing_whole(path, len(data)) as partial:
        partial.write_bytes(data)


def require_writable(path: Path) -> None:
    """Raises DiskError where nothing can be written into the folder ``path``, ValueError where a file is in its way."""
    _require_access(path, path.absolute())


def require_replaceable(path: Path) -> None:
    """Raises as :func:`require_writable` where nothing can be put in the place of ``path``."""
    _require_access(path, path.absolute().parent)


def _require_access(path: Path, place: Path) -> None:
    nearest = next(one for one in (place, *place.parents) if one.exists())
    if not nearest.is_dir():
        raise ValueError(f"{path} cannot be made: {nearest} is a file; choose another output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise DiskError(read_only_text(path, nearest))


def require_space(path: Path, size: int, need: str = "that it takes") -> None:
    """Raises DiskError if the disk of ``path`` has less than ``size`` left; ``need`` says for what."""
    if available_disk(path) < size:
        raise DiskError(full_text(path, size, need))


def nearest_folder(path: Path) -> Path:
    """``path`` itself or the folder nearest above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def available_disk(path: Path) -> int:
    """Bytes free where ``path`` is, or will be."""
    return shutil.disk_usage(nearest_folder(path)).free


def full_text(path: Path, size: int | None, need: str = "that it takes") -> str:
    needed = "" if size is None else f" of the {size_text(size)} {need}"
    return (
        f"{path} cannot be written: the disk has {size_text(available_disk(path))} left{needed}; make room there and "
        "run the same command again, or choose another output"
    )


def read_only_text(path: Path, folder: Path) -> str:
    return (
        f"{path} cannot be written: {folder} is read-only, or not yours to write to; choose another output, or change "
        "its permissions"
    )


def size_text(size: int) -> str:
    """In MiB; less than one in KiB, from 10 GiB on in GiB."""
    if 0 < size < 2**20:
        return f"{-(-size // 2**10)} KiB"
    return f"{size / 2**20:.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _NUMBER.search(str(error))
    return int(found[1]) if found else None
