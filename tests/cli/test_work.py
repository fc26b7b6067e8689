"""Work is never lost: commands killed at the end, two at once, damaged folders, small disks."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from benchmarks.reliability.killing import changes
from benchmarks.reliability.killing import run as forked
from bitbrush.artifact.store import verify
from bitbrush.session.disk import available_disk
from bitbrush.session.journal import Journal
from bitbrush.session.outputs import work_folder
from tests.session.test_outputs import elsewhere

FAST = ("--method", "pcr", "--rounding", "nearest", "--steps", "2", "--num-prompts", "2")


@pytest.fixture
def command(model: Path, prompts: Path, tmp_path: Path) -> tuple[object, ...]:
    return ("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *FAST)


@pytest.fixture
def unfinished(run: Callable[..., Result], command: tuple[object, ...], tmp_path: Path) -> Path:
    """The work folder of a quantization that was interrupted while it was saved."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("bitbrush.artifact.store.complete_folder", interrupted)
        assert run(*command).exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == [".new.work"]
    return work_folder(tmp_path / "new")


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def weights(artifact: Path) -> bytes:
    return (artifact / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def killed_in(run: Callable[..., Result], command: tuple[object, ...], function: str, name: str, log: Path) -> None:
    """Runs the command in another process, and kills it before ``function`` changes the file or folder ``name``."""
    shutil.copytree(log.parent, saved := log.parents[1] / "before", dirs_exist_ok=True)
    assert forked(lambda: run(*command), log=log) == 0
    places = [place for place, one in enumerate(changes(log)) if (one.function, one.name) == (function, name)]
    log.unlink()
    for path in log.parent.iterdir():
        shutil.rmtree(path)
    shutil.copytree(saved, log.parent, dirs_exist_ok=True)
    shutil.rmtree(saved)
    assert forked(lambda: run(*command), before=places[0]) == -9


@pytest.mark.parametrize(
    ("function", "name"), [("replace", ".new.work"), ("unlink", "step-0000.piece"), ("unlink", ".new.lock")]
)
def test_killed_after_the_artifact_is_in_place_the_rest_is_removed(
    run: Callable[..., Result],
    refused: Callable[..., str],
    command: tuple[object, ...],
    unfinished: Path,
    tmp_path: Path,
    function: str,
    name: str,
) -> None:
    """Before the folder of work is renamed, while it is removed, and before the lock is given back."""
    killed_in(run, command, function, name, tmp_path / "changes.txt")
    assert verify(tmp_path / "new")
    assert "holds an artifact; give --overwrite to replace it" in refused(*command)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert run(*command, "--weights", 3, "--overwrite").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_two_at_once(
    run: Callable[..., Result], refused: Callable[..., str], command: tuple[object, ...], artifact: Path, tmp_path: Path
) -> None:
    """Every command that writes a folder tells who does so already, and changes nothing."""
    others = (
        command,
        ("recalibrate", artifact, "-o", tmp_path / "new", "--steps", 1, "--prompts", command[5]),
        ("sensitivity", command[1], "-o", tmp_path / "new", "--prompts", command[5], "--num-prompts", 2, "--steps", 1),
    )
    with elsewhere(tmp_path / "new") as process:
        for one in others:
            assert f"new is in use: process {process} on" in refused(*one)
        assert run(*command, "--dry-run").exit_code == 0
        assert {path.name for path in tmp_path.iterdir()} == {"artifact", ".new.lock"}
    assert run(*command).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"artifact", "new"}


def test_a_damaged_piece_is_named_and_done_anew(
    run: Callable[..., Result],
    refused: Callable[..., str],
    command: tuple[object, ...],
    unfinished: Path,
    tmp_path: Path,
) -> None:
    piece = unfinished / "step-0001.piece"
    data = bytearray(piece.read_bytes())
    data[-1] ^= 1
    piece.write_bytes(data)
    assert f"{piece} is damaged" in refused(*command)
    piece.unlink()
    assert "going on with the 2 pieces of work" in run(*command).stderr
    assert run(*(part if part != tmp_path / "new" else tmp_path / "whole" for part in command)).exit_code == 0
    assert weights(tmp_path / "new") == weights(tmp_path / "whole")


def test_a_half_removed_folder_is_named_before_anything_is_loaded(
    refused: Callable[..., str], command: tuple[object, ...], unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitbrush.sources.models.load_source", None)
    (unfinished / "fingerprint.json").unlink()
    assert f"{unfinished} holds no fingerprint.json: it is half removed" in refused(*command)
    assert len(Journal(unfinished).pieces()) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many KiB."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(size: int) -> Path:
        subprocess.run(["umount", place], check=False, capture_output=True)
        options = ["-o", f"size={size}k", "tmpfs", place]
        if subprocess.run(["mount", "-t", "tmpfs", *options], check=False, capture_output=True).returncode:
            pytest.skip("only root may mount a file system")
        return place

    yield mount
    subprocess.run(["umount", place], check=False, capture_output=True)


def test_too_small_a_disk_is_told_before_anything_is_written(
    refused: Callable[..., str], command: tuple[object, ...], small_disk: Callable[[int], Path]
) -> None:
    place = small_disk(64)
    said = refused(*command[:2], "-o", place / "new", *command[4:])
    assert "KiB" in said
    assert "make room there" in said
    assert "choose another output" in said
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("size", [96, 200, 400, 800, 1600, 2000])
def test_a_disk_that_fills_up_is_told_and_the_work_goes_on(
    run: Callable[..., Result],
    command: tuple[object, ...],
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    """As if others had filled it after the checks: in the middle of calibration, or of any file of the artifact."""
    for name in ("quantization.estimate.require_disk", "sources.models.require_space", "artifact.store.require_space"):
        monkeypatch.setattr(f"bitbrush.{name}", lambda *_, **__: None)
    place = small_disk(size)
    arguments = (*command[:2], "-o", place / "new", *command[4:])
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    said = " ".join(result.stderr.split("error: ")[1].split())
    assert f"{place}" in said
    assert "cannot be written: the disk has" in said
    assert "make room there and run the same command again" in said
    assert {path.name for path in place.iterdir()} <= {".new.work"}
    subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
    assert run(*arguments).exit_code == 0
    assert [path.name for path in place.iterdir()] == ["new"]


@pytest.mark.parametrize("limit", [1 << 9, 1 << 11, 1 << 13, 1 << 15, 1 << 17, 1 << 19])
def test_files_larger_than_the_limit_leave_nothing_of_an_artifact(
    refused: Callable[..., str], command: tuple[object, ...], unfinished: Path, tmp_path: Path, limit: int
) -> None:
    """Configurations, vocabularies, networks and integers are written by six libraries."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        said = refused(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written: the disk has" in said
    assert "see ulimit -f" in said
    assert [path.name for path in tmp_path.iterdir()] == [".new.work"]
    assert available_disk(tmp_path) and os.listdir(unfinished)
