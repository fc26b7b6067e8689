"""Work is never lost: commands killed at the end, two at once, damaged folders, small disks."""

import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from benchmarks.reliability import killing
from benchmarks.reliability.killing import Change
from bitbrush.artifact.store import verify
from bitbrush.cli import app
from bitbrush.session.journal import Journal
from bitbrush.session.outputs import work_folder
from tests.session.test_outputs import elsewhere

FAST = ("--method", "pcr", "--rounding", "nearest", "--steps", "2", "--num-prompts", "2")


@pytest.fixture
def command(model: Path, prompts: Path, tmp_path: Path) -> tuple[object, ...]:
    return ("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *FAST)


@pytest.fixture(scope="module")
def _unfinished(model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a quantization that was interrupted while it was saved."""
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("bitbrush.artifact.store.complete_folder", interrupted)
        arguments = ["quantize", str(model), "-o", str(folder / "new"), "--prompts", str(prompts), *FAST]
        assert CliRunner().invoke(app, arguments).exit_code == 130
    assert [path.name for path in folder.iterdir()] == [".new.work"]
    return work_folder(folder / "new")


@pytest.fixture
def unfinished(_unfinished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_unfinished, work_folder(tmp_path / "new")))


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def weights(artifact: Path) -> bytes:
    return (artifact / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "change",
    [Change("replace", ".new.work"), Change("unlink", "step-0000.piece"), Change("unlink", ".new.lock")],
    ids=str,
)
def test_killed_after_the_artifact_is_in_place_the_rest_is_removed(
    run: Callable[..., Result],
    refused: Callable[..., str],
    command: tuple[object, ...],
    unfinished: Path,
    tmp_path: Path,
    change: Change,
) -> None:
    """Before the folder of work is renamed, while it is removed, and before the lock is given back."""
    assert killing.run(lambda: run(*command), before=change) == -signal.SIGKILL
    assert verify(tmp_path / "new")
    assert (change.name == ".new.work") == unfinished.exists()
    assert "holds an artifact; give --overwrite to replace it" in refused(*command)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("change", [Change("exchange", ".new.new"), Change("unlink", "manifest.json")], ids=str)
def test_killed_around_the_exchange_one_artifact_is_valid(
    run: Callable[..., Result], command: tuple[object, ...], unfinished: Path, artifact: Path, change: Change
) -> None:
    """Before the new artifact takes the place of the old one, and while the old one is removed."""
    output = Path(str(command[3]))
    old = weights(artifact)
    artifact.rename(output)
    assert killing.run(lambda: run(*command, "--overwrite"), before=change) == -signal.SIGKILL
    assert verify(output)
    assert (weights(output) == old) == (change.function == "exchange")
    assert run(*command, "--overwrite").exit_code == 0
    assert weights(output) != old
    assert [path.name for path in output.parent.iterdir()] == ["new"]


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
    assert run(*command[:3], tmp_path / "whole", *command[4:]).exit_code == 0
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


@pytest.mark.parametrize("size", [200, 1600])
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


@pytest.mark.parametrize("limit", [1 << 10, 1 << 14, 1 << 17])
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
    assert len(Journal(unfinished).pieces()) == 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_random_and_at_renames(tmp_path: Path) -> None:
    """A shorter run of the kills that docs/reliability.md tells of."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.reliability.kills",
        "--kills",
        "12",
        "--output",
        tmp_path / "kills.json",
    ]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
