"""The program as a whole: quick to answer, polite when interrupted, honest about progress."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import bitbrush


def test_help_needs_no_large_library() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from bitbrush.cli import app\n"
        "for arguments in (['--help'], ['quantize', '--help'], ['--version']):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0\n"
        "large = {'torch', 'diffusers', 'transformers', 'matplotlib', 'scipy', 'skimage', 'psutil', 'filelock'}\n"
        "assert not large & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "bitbrush", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"bitbrush {bitbrush.__version__}\n"


def test_exports_are_what_is_announced() -> None:
    assert all(getattr(bitbrush, name) is not None for name in bitbrush.__all__)
    with pytest.raises(AttributeError, match="no attribute 'dequantise'"):
        _ = bitbrush.dequantise


def test_an_unknown_option_is_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    assert run("quantize", "emoji-sd", "-o", tmp_path / "new", "--wieghts", 4).exit_code == 2


def test_interrupted(run: Callable[..., Result], artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitbrush.artifact.verification.reading", interrupt)
    result = run("inspect", artifact)
    assert result.exit_code == 130
    assert "interrupted; nothing half-written is left behind" in result.stderr


def test_demo_says_where_its_page_is(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitbrush.bench.experiments.demo.run.run_demo", lambda folder, progress: folder / "index.html")
    result = run("demo", "-o", tmp_path / "demo")
    assert result.stdout.splitlines()[0] == str(tmp_path / "demo" / "index.html")
