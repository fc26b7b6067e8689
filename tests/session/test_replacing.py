"""Folders that appear whole, whatever ends the process that writes them."""

import subprocess
import sys
from pathlib import Path

import pytest

from bitbrush.session.replacing import complete_folder

KILLED = """
import os, shutil, sys
from pathlib import Path
from bitbrush.session.replacing import complete_folder

target, left = Path(sys.argv[1]), int(sys.argv[2])

def counted(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return function(*args, **kwargs)
    return call

for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
    setattr(os, name, counted(getattr(os, name)))
with complete_folder(target) as fresh:
    fresh.mkdir()
    for name in ("a", "b"):
        (fresh / name).write_text("new")
"""


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def write(target: Path, text: str) -> None:
    with complete_folder(target) as fresh:
        fresh.mkdir()
        for name in ("a", "b"):
            (fresh / name).write_text(text, encoding="utf-8")


OLD, NEW = ({"a": text, "b": text} for text in ("old", "new"))


@pytest.mark.parametrize("calls", range(8))
def test_killed_at_any_moment_the_old_or_the_new_is_whole(tmp_path: Path, calls: int) -> None:
    """Killed after so many renames, removals and folders made, which is more than there are for the last ones."""
    target = tmp_path / "artifact"
    write(target, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, target, str(calls)], check=False)
    assert done.returncode in (0, 9)
    place = target if target.exists() else tmp_path / ".artifact.old"
    assert content(place) in (OLD, NEW)
    (tmp_path / "seen").touch()
    with pytest.raises(RuntimeError), complete_folder(target):
        raise RuntimeError
    assert content(target) in (OLD, NEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "seen"]


def test_the_kills_reach_every_state(tmp_path: Path) -> None:
    """Of the test above: the old one in place, put aside, and the new one in place."""
    found = set()
    for calls in range(8):
        target = tmp_path / str(calls) / "artifact"
        target.parent.mkdir()
        write(target, "old")
        subprocess.run([sys.executable, "-c", KILLED, target, str(calls)], check=False)
        found.add(content(target)["b"] if target.exists() else "aside")
    assert found == {"old", "aside", "new"}


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [True, False])
def test_an_error_leaves_what_was(tmp_path: Path, error: BaseException, there: bool) -> None:
    target = tmp_path / "artifact"
    if there:
        write(target, "old")

    def fail() -> None:
        with complete_folder(target) as fresh:
            fresh.mkdir()
            (fresh / "a").write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"] * there
    assert not there or content(target) == OLD


def test_replaces_what_stands_there(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    for text in ("old", "new"):
        write(target, text)
    assert content(target) == NEW
    assert list(tmp_path.iterdir()) == [target]
