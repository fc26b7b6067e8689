"""Writing to a disk that may be full or read-only; errors name the path and the remedy."""

import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_LIMITS = {
    errno.EDQUOT: "; your quota there is used up, see quota -s",
    errno.EFBIG: "; the size of a file is limited here, see ulimit -f",
}
_NUMBER = re.compile(r"os error (\d+)")
"""Pattern of the system's error number in messages of safetensors and tokenizers."""


class DiskError(OSError, ValueError):
    """A file could not be written because the disk is full or read-only, or its folder takes none."""


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Adds ``path`` and a remedy to disk errors.

    Args:
        path: File or folder that the code inside writes.
        size: Bytes to write, if known.

    Raises:
        DiskError: The disk is full or read-only; the message names the path, the need and the remedy.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:  # safetensors and tokenizers name the system's error in exceptions of their own
        number = _error_number(error)
        if number in FULL:
            raise DiskError(full_text(path, size) + _LIMITS.get(number, "")) from error
        if number in READ_ONLY:
            raise DiskError(read_only_text(path, nearest_folder(path.parent))) from error
        raise


@contextmanager
def writing_whole(path: Path, size: int | None = None) -> Iterator[Path]:
    """Yields a temporary path that replaces ``path`` at the end, so nobody reads half a file.

    It is in the same folder, since a rename must not cross disks, and no two threads share it. A failure removes it and
    leaves the old file. A power failure leaves the old file or the new one.

    Args:
        path: File to write.
        size: Bytes to write, if known.

    Raises:
        DiskError: The disk is full or read-only.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    with writing(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            sync(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_whole(content: str | bytes, path: Path) -> None:
    """Writes all of ``content`` (text as UTF-8) or nothing.

    Raises:
        DiskError: The disk is full or read-only.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing_whole(path, len(data)) as partial:
        partial.write_bytes(data)


def sync(path: Path) -> None:
    """Writes a file or folder through to the disk; does nothing where the system cannot."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders of some network file systems
            raise
    finally:
        os.close(descriptor)


def require_writable(path: Path) -> None:
    """Checks that files can be written into the folder ``path``.

    Raises:
        DiskError: The folder is read-only.
        ValueError: A file is in its place.
    """
    _require_access(path, path.absolute())


def require_replaceable(path: Path) -> None:
    """Checks that ``path`` can be written or replaced.

    Raises:
        DiskError: Its folder is read-only.
        ValueError: A file is in the place of its folder, or the path is a link to nothing.
    """
    _require_access(path, path.absolute() if path.is_symlink() and not path.exists() else path.absolute().parent)


def _require_access(path: Path, place: Path) -> None:
    """Makes a file in the nearest existing folder, since permissions do not tell what /proc refuses even to root."""
    nearest = next(candidate for candidate in (place, *place.parents) if os.path.lexists(candidate))
    if not nearest.is_dir():
        kind = "a file" if nearest.exists() else "a link to nothing"
        raise ValueError(f"{path} cannot be made: {nearest} is {kind}; choose another output")
    with writing(path):
        try:
            tempfile.TemporaryFile(dir=nearest).close()  # without a name where the system can
        except OSError as error:
            if error.errno in (*READ_ONLY, errno.ENOENT):
                raise DiskError(read_only_text(path, nearest)) from error
            raise


def require_space(path: Path, size: int, need: str = "that it takes") -> None:
    """Checks that the disk of ``path`` has ``size`` bytes left.

    Args:
        path: File or folder to write.
        size: Bytes needed.
        need: Purpose of the bytes, for the message.

    Raises:
        DiskError: The disk has less left.
    """
    if available_disk(path) < size:
        raise DiskError(full_text(path, size, need))


def nearest_folder(path: Path) -> Path:
    """Finds the nearest existing folder: ``path`` itself or one above it."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def available_disk(path: Path) -> int:
    """Returns the free bytes on the disk of ``path``, which need not exist yet."""
    return shutil.disk_usage(nearest_folder(path)).free


def full_text(path: Path, size: int | None, need: str = "that it takes") -> str:
    """Returns the message for a full disk, with the bytes left, the bytes needed if known, and the remedy."""
    needed = "" if size is None else f" of the {size_text(size)} {need}"
    return (
        f"{path} cannot be written: the disk has {size_text(available_disk(path))} left{needed}; make room there and "
        "run the same command again, or choose another output"
    )


def read_only_text(path: Path, folder: Path) -> str:
    """Returns the message for a read-only folder, with the remedy."""
    return (
        f"{path} cannot be written: {folder} is read-only, or not yours to write to; choose another output, or change "
        "its permissions"
    )


def size_text(size: int) -> str:
    """Formats bytes in MiB; in KiB below one MiB, and in GiB from 10 GiB on."""
    if 0 < size < 2**20:
        return f"{-(-size // 2**10)} KiB"
    return f"{size / 2**20:.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    match = _NUMBER.search(str(error))
    return int(match[1]) if match else None
