"""The cache of compiled kernels: what is loaded was written by the user, and is whole."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitbrush.runtime.native import build
from bitbrush.runtime.native.build import NativeUnavailable
from bitbrush.runtime.native.cache import cache_folder, cached_library

CODE = b"compiled " * 1000
AS_POSIX = pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes are POSIX's")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return cache_folder(tmp_path / "new" / "kernels")


@pytest.fixture
def compiled() -> list[Path]:
    return []


@pytest.fixture
def find(folder: Path, compiled: list[Path]) -> Callable[[], Path]:
    def compile_to(target: Path) -> None:
        compiled.append(target)
        target.write_bytes(CODE)

    return lambda: cached_library(folder, "key", compile_to)


@AS_POSIX
def test_folder_and_library_are_private(folder: Path, find: Callable[[], Path]) -> None:
    path = find()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == [path]


def test_an_intact_library_is_compiled_once(find: Callable[[], Path], compiled: list[Path]) -> None:
    assert find() == find()
    assert len(compiled) == 1


def _truncate(path: Path) -> None:
    os.truncate(path, 100)


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _let_others_write(path: Path) -> None:
    path.chmod(0o722)


def _link(path: Path) -> None:
    other = path.rename(path.parents[1] / "elsewhere.so")
    path.symlink_to(other)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@AS_POSIX
@pytest.mark.parametrize("change", [_truncate, _flip_a_bit, _let_others_write, _link, _empty])
def test_another_library_is_compiled_again(
    change: Callable[[Path], None], find: Callable[[], Path], compiled: list[Path]
) -> None:
    change(find())
    path = find()
    assert len(compiled) == 2
    assert path.read_bytes() == CODE
    assert stat.S_ISREG(path.lstat().st_mode)
    assert find() == path
    assert len(compiled) == 2


@AS_POSIX
def test_a_library_of_another_user_is_compiled_again(
    find: Callable[[], Path], compiled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    find()
    assert len(compiled) == 2


@AS_POSIX
@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_write_to_is_not_used(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.warns(UserWarning, match=r"not used \(its mode \d+ lets others write into it\).*BITBRUSH_CACHE"):
        private = cache_folder(tmp_path)
    assert private != tmp_path
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert not list(tmp_path.iterdir())


@AS_POSIX
def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.warns(UserWarning, match=r"not used \(it belongs to user \d+\)"):
        assert cache_folder(tmp_path) != tmp_path


def test_a_file_in_the_folders_place_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("mine", encoding="utf-8")
    for folder in (place, place / "kernels"):
        with pytest.warns(UserWarning, match="is not used"):
            assert cache_folder(folder).is_dir()
    assert place.read_text(encoding="utf-8") == "mine"


def test_windows_has_neither_owners_nor_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.delattr(os, "getuid", raising=False)
    assert cache_folder(tmp_path) == tmp_path


def test_a_user_without_home_is_told_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("BITBRUSH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(NativeUnavailable, match="BITBRUSH_CACHE"):
        build._cache()


def test_a_failed_compilation_leaves_nothing(folder: Path) -> None:
    def fail(target: Path) -> None:
        target.write_bytes(b"half")
        raise NativeUnavailable("no")

    with pytest.raises(NativeUnavailable):
        cached_library(folder, "key", fail)
    assert not list(folder.iterdir())


@pytest.fixture
def _compiler() -> None:
    try:
        build._compiler()
    except NativeUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("_compiler")
def test_two_processes_compile_at_once_and_a_truncated_library_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library itself, in place of the kernels: mapping a truncated one ends the process by SIGBUS."""
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { static char all[1 << 20] = {42}; return all[0]; }\n', encoding="utf-8")
    script = (
        "import ctypes, sys\n"
        "from pathlib import Path\n"
        "from bitbrush.runtime.native.build import _compile, _compiler\n"
        "from bitbrush.runtime.native.cache import cache_folder, cached_library\n"
        "folder, source = cache_folder(Path(sys.argv[1])), Path(sys.argv[2])\n"
        "path = cached_library(folder, 'key', lambda target: _compile(_compiler(), [source], target))\n"
        "assert ctypes.CDLL(str(path)).answer() == 42\n"
    )
    folder = tmp_path / "kernels"
    command = [sys.executable, "-c", script, str(folder), str(source)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [one.communicate()[1] for one in started] == ["", ""]
    for path in folder.iterdir():
        os.truncate(path, path.stat().st_size // 2)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "")
