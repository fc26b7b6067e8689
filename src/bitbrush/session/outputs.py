"""Outputs of commands: one process at a time writes to each, and the next one tidies up after a killed one."""

import errno
import json
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import lock_descriptor

from bitbrush.session.disk import require_replaceable, writing
from bitbrush.session.journal import remove_temporary, remove_unstarted
from bitbrush.session.ranks import ALONE, Ranks
from bitbrush.session.replacing import recover

_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)
"""Errors of file systems without locks, some network ones among them."""
_claims: set[tuple[Path, int]] = set()
"""Locked files of this process, each with the thread that may claim its output again."""


class OutputBusyError(ValueError):
    """Another process writes to the output."""


def work_folder(output: Path) -> Path:
    """Returns the folder of unfinished work for ``output``: hidden, beside it or beside the folder that it links to."""
    return _hidden(output, "work")


def _hidden(output: Path, ending: str) -> Path:
    named = Path(os.path.realpath(output)) if output.name in ("", "..") or output.is_symlink() else output
    return named.with_name(f".{named.name}.{ending}")


@contextmanager
def claimed(output: Path, ranks: Ranks = ALONE, *, work: Path | None = None) -> Iterator[None]:
    """Lets no other process write to ``output`` until the end, and removes what killed processes left.

    The system releases the lock however the process ends. The thread that holds it may claim the output again. Work
    without a finished piece is removed at the end.

    Args:
        output: File or folder to write.
        ranks: Processes that share the work; the first holds the lock for all.
        work: Folder of unfinished work; by default that of ``output``.

    Raises:
        OutputBusyError: Another process or thread writes there; the message names it.
        DiskError: The disk is full or read-only.
        ValueError: A file is in the place of a folder.
    """
    work = work or work_folder(output)
    path = _hidden(output, "lock").absolute()
    claim = (path, threading.get_ident())
    if claim in _claims:
        yield
        return
    require_replaceable(output)
    missing = [folder for folder in path.parents if not folder.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, work, *missing)
        with ranks.together():
            if ranks.leads:
                stack.enter_context(_locked(path, output))
                _tidy(output, work)
                stack.callback(remove_unstarted, work)
        _claims.add(claim)
        stack.callback(_claims.discard, claim)
        yield


def _tidy(output: Path, work: Path) -> None:
    """Removes what killed processes left of replacements and removals, and their temporary files."""
    for folder in (output, work):
        recover(folder)
        remove_temporary(folder)


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with suppress(OSError):  # absent, or not empty
            folder.rmdir()


@contextmanager
def _locked(path: Path, output: Path) -> Iterator[None]:
    descriptor = _lock(path, output)
    try:
        with writing(output):
            _write_owner(descriptor)
        yield
    finally:
        with suppress(PermissionError):  # Windows keeps a file that is open
            path.unlink(missing_ok=True)  # while it is locked: see _lock
        os.close(descriptor)


def _lock(path: Path, output: Path) -> int:
    """Opens and locks the file at ``path``, and returns its descriptor.

    Its owner removes the file at the end, when another process may have opened it already. That process locks the
    removed file, sees that it is no longer at ``path``, and tries again.
    """
    while True:
        descriptor = _opened(path, output)
        try:
            _require_lock(descriptor, output)
            if _is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _opened(path: Path, output: Path) -> int:
    with writing(output):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _require_lock(descriptor: int, output: Path) -> None:
    try:
        if not lock_descriptor(descriptor, blocking=False):
            raise OutputBusyError(_busy_text(descriptor, output))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"{output} is on a file system without locks ({error.strerror}), so nothing keeps a second process from "
            "writing there: start none until this one has ended, or choose an output on another disk",
            stacklevel=2,
        )


def _write_owner(descriptor: int) -> None:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    owner = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)  # Windows has no pwrite
    os.write(descriptor, json.dumps(owner).encode())


def _busy_text(descriptor: int, output: Path) -> str:
    try:
        owner = json.loads(os.read(descriptor, 4096))
        name = f"process {owner['process']} on {owner['host']} has written since {owner['since']}"
    except (ValueError, KeyError, TypeError):  # its owner has locked the file, but not yet written its name
        name = "another process has just begun to write"
    return f"{output} is in use: {name}; wait until it ends, end it, or choose another output"
