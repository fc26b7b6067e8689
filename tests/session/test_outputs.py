"""One process writes to an output; what killed ones left is removed."""

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bitbrush.session import outputs
from bitbrush.session.disk import DiskError
from bitbrush.session.journal import open_journal
from bitbrush.session.outputs import OutputBusyError, claimed, work_folder
from bitbrush.session.ranks import RankError, Ranks
from tests.thread_ranks import in_threads


@contextmanager
def elsewhere(output: Path) -> Iterator[int]:
    """Claims the output in another process until the end."""
    ready, written = os.pipe()
    process = os.fork()
    if process == 0:
        with claimed(output):
            os.write(written, b"!")
            signal.pause()
        os._exit(0)
    os.read(ready, 1)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(ready)
        os.close(written)


def test_a_second_process_is_told_who_writes(tmp_path: Path) -> None:
    output, before = tmp_path / "artifact", set(tmp_path.iterdir())
    with elsewhere(output) as process:
        told = rf"artifact is in use: process {process} on \S+ has written since 2\d{{3}}-\d\d-\d\d \S+; wait until it"
        with pytest.raises(OutputBusyError, match=told), claimed(output):
            raise AssertionError
        with claimed(tmp_path / "another"):
            pass
    with claimed(output):  # the system has released the lock of the killed one
        pass
    assert set(tmp_path.iterdir()) == before


def test_what_windows_lacks_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no pread and pwrite, and keeps a file that is open."""
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "pwrite")
    usual = Path.unlink

    def keep(path: Path, *, missing_ok: bool = False) -> None:
        if path.name.endswith(".lock"):
            raise PermissionError(errno.EACCES, "the file is open")
        usual(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", keep)
    for _ in range(2):
        with elsewhere(tmp_path / "output") as process:
            busy = pytest.raises(OutputBusyError, match=f"process {process} on .* has written since")
            with busy, claimed(tmp_path / "output"):
                raise AssertionError
        with claimed(tmp_path / "output"):
            pass


def test_an_owner_that_has_not_named_itself_is_busy_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_write_owner", lambda _: None)
    busy = pytest.raises(OutputBusyError, match="another process has just begun")
    with elsewhere(tmp_path / "a"), busy, claimed(tmp_path / "a"):
        raise AssertionError


def claimed_in_a_thread(output: Path) -> str:
    """Claims the output in another thread and returns what it was told, or nothing."""
    said = [""]

    def other() -> None:
        try:
            with claimed(output):
                pass
        except OutputBusyError as error:
            said.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    return said[-1]


def test_a_thread_may_claim_again_and_another_may_not(tmp_path: Path) -> None:
    with claimed(tmp_path / "a"):
        with claimed(tmp_path / "a"):
            pass
        assert (tmp_path / ".a.lock").exists()
        assert f"process {os.getpid()} on" in claimed_in_a_thread(tmp_path / "a")
    assert not claimed_in_a_thread(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_on_a_removed_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner removes the file after this process has opened it, and ends before this one locks it."""
    lock, calls = outputs.lock_descriptor, 0

    def late(descriptor: int, **given: bool) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / ".a.lock").unlink()
        return lock(descriptor, **given)

    monkeypatch.setattr(outputs, "lock_descriptor", late)
    with claimed(tmp_path / "a"):
        assert calls == 2
        assert claimed_in_a_thread(tmp_path / "a")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def unsupported(*_: object, **__: object) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(outputs, "lock_descriptor", unsupported)
    told = r"a is on a file system without locks \(.*\), so nothing keeps a second process from writing there"
    with pytest.warns(UserWarning, match=told), claimed(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_locks_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> bool:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(outputs, "lock_descriptor", broken)
    with pytest.raises(OSError, match="broken"), claimed(tmp_path / "a"):
        raise AssertionError


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is a file; choose another output"), claimed(tmp_path / "file" / "a"):
        raise AssertionError

    def read_only(*_: object) -> int:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(DiskError, match=r"a cannot be written: .* is read-only"), claimed(tmp_path / "a"):
        raise AssertionError


def test_folders_made_for_the_lock_go_and_others_stay(tmp_path: Path) -> None:
    with claimed(tmp_path / "b" / "c" / "a"):
        assert (tmp_path / "b" / "c" / ".a.lock").exists()
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "b" / "c" / "a"):
        (tmp_path / "b" / "c" / "a").mkdir()
    assert list((tmp_path / "b" / "c").iterdir()) == [tmp_path / "b" / "c" / "a"]


def test_what_killed_processes_left_is_removed_and_finished_pieces_are_not(tmp_path: Path) -> None:
    output, work = tmp_path / "a", work_folder(tmp_path / "a")
    open_journal(work, {}).write("piece", {"x": torch.ones(1)})
    for name in (".a.new", ".a.removed", "..a.work.removed", ".a.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for path in (work / ".b.piece.1-2.part", work / "tmpx.offload", tmp_path / ".a.lock"):
        path.touch()
    with claimed(output):
        assert {path.name for path in work.iterdir()} == {"fingerprint.json", "piece.piece"}
        assert {path.name for path in tmp_path.iterdir()} == {"a", ".a.lock", ".a.work"}  # the old one is back
    assert {path.name for path in tmp_path.iterdir()} == {"a", ".a.work"}


def test_work_without_a_piece_goes_at_the_end(tmp_path: Path) -> None:
    work = work_folder(tmp_path / "a")

    def interrupted() -> None:
        with claimed(tmp_path / "a"):
            open_journal(work, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


class OneFails(Ranks):
    """The second of two processes, whose first one has failed."""

    def wait(self) -> None:
        raise RankError("process 0 of 2 failed")


def test_the_first_process_holds_the_lock_for_all(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> bool:
        with claimed(tmp_path / "a", ranks):
            return (tmp_path / ".a.lock").exists()

    assert in_threads(2, work)[0]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RankError), claimed(tmp_path / "a", OneFails(1, 2)):
        raise AssertionError


def test_the_current_folder_may_be_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with claimed(Path()):
        assert claimed_in_a_thread(tmp_path / "a")
    assert work_folder(Path()) == tmp_path / ".a.work"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc here")
@pytest.mark.parametrize("place", ["/proc/x", "/proc/x/y"])
def test_a_folder_that_makes_no_files_is_named(place: str) -> None:
    with pytest.raises(DiskError, match=rf"{place} cannot be written: .*choose another output"), claimed(Path(place)):
        raise AssertionError
