"""A folder that appears whole: what stands in its place stays until the new one is complete."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Yields a place for a folder beside ``target``, and moves it there at the end.

    After an error nothing of it is left. What a killed process has left is removed, and a folder that it was about to
    replace is put back.
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
    """Takes two steps, as a folder cannot take another's place; killed between them, the next run restores it."""
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
    """Whatever is named ``aside`` is whole at any moment: it is renamed before it is removed."""
    shutil.rmtree(fresh, ignore_errors=True)
    if aside.exists():
        aside.replace(fresh)
        shutil.rmtree(fresh, ignore_errors=True)
