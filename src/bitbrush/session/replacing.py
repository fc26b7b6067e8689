"""Atomic replacement and removal of folders: a process killed at any moment leaves a complete folder."""

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitbrush.session.disk import sync, writing

_CURRENT_FOLDER = -100
"""AT_FDCWD of ``renameat2``: relative paths start at the current folder."""
_EXCHANGE = 2
"""RENAME_EXCHANGE of ``renameat2``."""


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``target`` and moves it to ``target`` at the end.

    A link to a folder stays, and that folder is replaced. An error leaves nothing behind. Linux exchanges the folders
    in one step. Elsewhere, a process killed between two renames leaves the old folder aside, and :func:`recover`
    restores it.

    Raises:
        DiskError: The disk is full or read-only.
    """
    target = followed(target)
    recover(target)
    fresh, _ = _temporary(target)
    try:
        yield fresh
        with writing(target):
            _sync_all(fresh)
        _replace(target, fresh)
    finally:
        recover(target)


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside the file ``target`` for a folder, which is removed at the end."""
    recover(target)
    fresh, _ = _temporary(target)
    try:
        yield fresh
    finally:
        recover(target)


def recover(target: Path) -> None:
    """Restores a folder whose replacement was interrupted, and removes what killed processes left beside it."""
    target = followed(target)
    fresh, aside = _temporary(target)
    if aside.exists() and not target.exists():
        aside.replace(target)
    shutil.rmtree(fresh, ignore_errors=True)
    if aside.exists():  # renamed before its removal, so that `aside` is always complete
        aside.replace(fresh)
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(_removed(target), ignore_errors=True)


def followed(target: Path) -> Path:
    """Returns the folder to which a link leads, since it may be on another disk; other paths are made absolute."""
    return Path(os.path.realpath(target)) if target.is_symlink() else target.absolute()


def remove_folder(folder: Path) -> None:
    """Removes a folder in one step: it is renamed first, and :func:`recover` finishes an interrupted removal."""
    folder = followed(folder)
    recover(folder)
    if folder.exists():
        removed = _removed(folder)
        folder.replace(removed)
        shutil.rmtree(removed)


def _temporary(target: Path) -> tuple[Path, Path]:
    """Returns the paths of a new folder and of an old one during replacement."""
    return target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")


def _removed(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.removed")


def _replace(target: Path, fresh: Path) -> None:
    _, aside = _temporary(target)
    if target.exists() and not _exchange(fresh, target):
        target.replace(aside)
    if not target.exists():
        fresh.replace(target)
    sync(target.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two folders in one step; returns False where the system or file system cannot."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    paths = os.fsencode(first), os.fsencode(second)
    return bool(libc.renameat2(_CURRENT_FOLDER, paths[0], _CURRENT_FOLDER, paths[1], _EXCHANGE) == 0)


def _sync_all(folder: Path) -> None:
    """Writes the files and folders below ``folder`` through to the disk, so that a power failure empties none."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))
