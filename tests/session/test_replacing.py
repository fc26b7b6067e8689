"""Folders that appear whole, whatever ends the process that writes them."""

import signal
import sys
from pathlib import Path

import pytest

from benchmarks.reliability.killing import run
from bitbrush.session import replacing
from bitbrush.session.outputs import claimed, work_folder
from bitbrush.session.replacing import complete_folder, recover, remove_folder

KILLED = -signal.SIGKILL


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def write(target: Path, text: str) -> None:
    with complete_folder(target) as fresh:
        fresh.mkdir()
        for name in ("a", "b"):
            (fresh / name).write_text(text, encoding="utf-8")


OLD, NEW = ({"a": text, "b": text} for text in ("old", "new"))


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
def test_killed_at_any_moment_the_old_or_the_new_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    """Killed before each rename, removal, new folder and fsync, until the process comes to its end."""
    if not exchanges:
        monkeypatch.setattr(replacing, "_exchange", lambda *_: False)
    found, status, calls = set(), KILLED, 0
    while status == KILLED:
        target = tmp_path / str(calls) / "artifact"
        target.parent.mkdir()
        write(target, "old")
        status = run(lambda target=target: write(target, "new"), before=calls)
        place = target if target.exists() else target.with_name(".artifact.old")
        assert content(place) in (OLD, NEW)
        found.add(content(place)["b"] if target.exists() else "aside")
        recover(target)
        assert content(target) in (OLD, NEW)
        assert [path.name for path in target.parent.iterdir()] == ["artifact"]
        calls += 1
    assert status == 0
    assert calls > 8
    assert found == ({"old", "new"} if exchanges else {"old", "aside", "new"})


@pytest.mark.parametrize("calls", range(5))
def test_a_folder_is_removed_in_one_step(tmp_path: Path, calls: int) -> None:
    """Whatever ends the removal, the folder is whole or absent."""
    write(tmp_path / "work", "old")
    status = run(lambda: remove_folder(tmp_path / "work"), before=calls)
    assert status == (KILLED if calls < 4 else 0)  # a rename, two files and the folder
    assert (tmp_path / "work").exists() == (calls == 0)
    assert calls or content(tmp_path / "work") == OLD
    recover(tmp_path / "work")
    assert [path.name for path in tmp_path.iterdir()] == ["work"] * (calls == 0)


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


def test_linux_exchanges_folders_in_one_step(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")
    write(tmp_path / "b", "new")
    exchanged = replacing._exchange(tmp_path / "a", tmp_path / "b")
    assert exchanged == (sys.platform == "linux")
    assert content(tmp_path / "a") == (NEW if exchanged else OLD)
    assert not replacing._exchange(tmp_path / "a", tmp_path / "absent")


def test_a_link_stays_and_the_folder_that_it_leads_to_is_replaced(tmp_path: Path) -> None:
    """The folder may be on another disk, with room that the link's has not."""
    (tmp_path / "large" / "disk").mkdir(parents=True)
    link = tmp_path / "artifact"
    link.symlink_to(tmp_path / "large" / "disk")
    for text in ("old", "new"):
        with claimed(link):
            assert work_folder(link).parent == tmp_path / "large"
            write(link, text)
    assert link.is_symlink()
    assert content(tmp_path / "large" / "disk") == NEW
    assert [path.name for path in tmp_path.iterdir() if path != link] == ["large"]
    assert [path.name for path in (tmp_path / "large").iterdir()] == ["disk"]
