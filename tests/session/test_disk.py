"""Disks that are full or read-only: named with the need and the remedy, and nothing half-written."""

import errno
import resource
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO

import pytest
import torch
from safetensors.torch import save_file
from tokenizers.models import BPE

from bitbrush.session import disk
from bitbrush.session.disk import (
    DiskError,
    require_replaceable,
    require_writable,
    size_text,
    write_whole,
    writing,
    writing_whole,
)
from bitbrush.session.journal import Journal
from bitbrush.session.offload import Offload


@pytest.fixture
def _small_files() -> Iterator[None]:
    """The system refuses files of more than 64 KiB, as it does where the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LARGE = {"a": torch.zeros(1 << 16)}


@pytest.mark.usefixtures("_small_files")
def test_a_piece_of_work_that_does_not_fit_is_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(DiskError, match=r"block\.piece cannot be written: the disk has .* left of the 257 KiB"):
        journal.write("block", LARGE)
    assert journal.pieces() == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_small_files")
def test_tensors_that_cannot_be_put_away_stay_as_they_are(tmp_path: Path) -> None:
    tensor = torch.arange(1 << 16)
    with pytest.raises(DiskError, match="512 KiB that it takes; make room there and run the same command again"):
        Offload(tmp_path).put(tensor)
    assert torch.equal(tensor, torch.arange(1 << 16))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_small_files")
def test_safetensors_own_errors_are_told_alike(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"the disk has .*see ulimit -f"), writing(tmp_path / "weights"):
        save_file(LARGE, tmp_path / "weights")


@pytest.mark.usefixtures("_small_files")
def test_tokenizers_own_errors_are_told_alike(tmp_path: Path) -> None:
    model = BPE({f"token {number}": number for number in range(10_000)}, [])
    with pytest.raises(DiskError, match=r"the disk has .*see ulimit -f"), writing(tmp_path / "vocabulary"):
        model.save(str(tmp_path))


def test_a_quota_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="your quota there is used up, see quota -s"), writing(tmp_path):
        raise OSError(errno.EDQUOT, "quota")


def test_files_reach_the_disk_before_they_replace_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = disk.sync, Path.replace
    monkeypatch.setattr(disk, "sync", lambda path: (order.append(f"sync {path.suffix}"), sync(path)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (order.append(f"replace {path.suffix}"), replace(path, to)))
    write_whole("new", tmp_path / "file")
    assert order == ["sync .part", "replace .part"]


@pytest.mark.parametrize(("number", "raised"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_folders_that_cannot_be_written_through_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: bool
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no") if raised else nullcontext():
        disk.sync(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write_whole("old", tmp_path / "file")

    def fail(self: Path, target: Path) -> None:
        raise OSError(number, "full")

    monkeypatch.setattr(Path, "replace", fail)
    monkeypatch.setattr(disk, "available_disk", lambda _: 3 << 20)
    with pytest.raises(DiskError, match=r"file cannot be written: the disk has 3 MiB left of the 1 KiB that it takes"):
        write_whole("new", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_fails_half_way_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with writing_whole(tmp_path / "file") as partial:
            partial.write_text("half", encoding="utf-8")
            assert (tmp_path / "file").read_text(encoding="utf-8") == "old"
            raise error

    write_whole("old", tmp_path / "file")
    with pytest.raises(error):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text(encoding="utf-8") == "old"


def test_threads_do_not_write_to_the_same_file(tmp_path: Path) -> None:
    both, seen = threading.Barrier(2), []

    def write(text: str) -> None:
        with writing_whole(tmp_path / "file") as partial:
            partial.write_text(text, encoding="utf-8")
            both.wait()
            seen.append(partial.read_text(encoding="utf-8"))

    threads = [threading.Thread(target=write, args=(text,)) for text in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_read_only_disk_is_told_of(tmp_path: Path, number: int) -> None:
    with pytest.raises(DiskError, match="is read-only, or not yours to write to; choose another"), writing(tmp_path):
        raise OSError(number, "no")


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        (tmp_path / "none").read_bytes()


def test_what_cannot_be_made_is_known_before(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place, kind in (("file", "a file"), ("link", "a link to nothing"), ("loop", "a link to nothing")):
        for below in (place, f"{place}/b", f"{place}/b/c"):
            with pytest.raises(
                ValueError, match=rf"{below} cannot be made: .*{place} is {kind}; choose another output"
            ):
                require_writable(tmp_path / below)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "loop"]


Refusing = Callable[[Path, int], None]


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Refusing:
    """Lets the system refuse new files in a folder, as it does to those who are not root."""
    make = tempfile.TemporaryFile

    def refuse(folder: Path, number: int) -> None:
        def temporary(*, dir: Path) -> IO[bytes]:  # noqa: A002 - the name of the original
            if dir == folder:
                raise OSError(number, "no")
            return make(dir=dir)

        monkeypatch.setattr("tempfile.TemporaryFile", temporary)

    return refuse


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT])
def test_a_folder_that_takes_no_files_is_named(tmp_path: Path, refusing: Refusing, number: int) -> None:
    refusing(tmp_path, number)
    with pytest.raises(DiskError, match=rf"a/b cannot be written: {tmp_path} is read-only, or not yours"):
        require_writable(tmp_path / "a" / "b")


def test_a_disk_without_room_for_a_file_is_named_before(tmp_path: Path, refusing: Refusing) -> None:
    refusing(tmp_path, errno.ENOSPC)
    with pytest.raises(DiskError, match=r"a cannot be written: the disk has .* left; make room there"):
        require_replaceable(tmp_path / "a")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux has /proc")
@pytest.mark.parametrize("path", ["/proc/x", "/proc/x/y", "/proc/self/x/y/z"])
def test_proc_takes_no_files_even_from_root(path: str) -> None:
    for require in (require_writable, require_replaceable):
        with pytest.raises(DiskError, match=rf"{path} cannot be written: /proc\S* is read-only, or not yours"):
            require(Path(path))


def test_what_replaces_a_folder_is_written_beside_it(tmp_path: Path, refusing: Refusing) -> None:
    (tmp_path / "artifact").mkdir()
    refusing(tmp_path, errno.EACCES)
    require_writable(tmp_path / "artifact")
    with pytest.raises(DiskError, match=rf"artifact cannot be written: {tmp_path} is read-only"):
        require_replaceable(tmp_path / "artifact")


def test_sizes_as_people_read_them() -> None:
    assert [size_text(size) for size in (0, 1, 3 << 20, 9 << 30, 21 << 30)] == [
        "0 MiB",
        "1 KiB",
        "3 MiB",
        "9216 MiB",
        "21.0 GiB",
    ]
