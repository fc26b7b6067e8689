"""Atomic replacement of a folder: the old folder stays until the new one is complete."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``target`` and moves it to ``target`` at the end.

    An error leaves nothing behind. Leftovers of a killed process are removed, and a folder that it was replacing is
    restored.
    """
    fresh, aside = (target.with_name(f".{target.name}.{state}") for state in ("new", "old"))
    _restore(target, aside)
    _clear(fresh, aside)
    try:
        yield fresh
        _replace(target, fresh, aside)
    finally:
        _clear(fresh, aside)


def _replace(target: Path, fresh: Path, aside: Path) -> None:
    """Replaces the folder in two renames, as no single rename can; if killed between them, the next run restores it."""
    if target.exists():
        target.replace(aside)
    try:
        fresh.replace(target)
    except BaseException:
        _restore(target, aside)
        raise


def _restore(target: Path, aside: Path) -> None:
    if aside.exists() and not target.exists():
        aside.replace(target)


def _clear(fresh: Path, aside: Path) -> None:
    """Removes both temporary folders; ``aside`` is renamed before removal, so that it is always complete."""
    shutil.rmtree(fresh, ignore_errors=True)
    if aside.exists():
        aside.replace(fresh)
        shutil.rmtree(fresh, ignore_errors=True)
