"""Every script of ``examples/`` runs by itself, and is short."""

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import bitbrush

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {path.name for path in EXAMPLES.glob("*.py")}
MAKER = "quantize_and_save.py"
"""The script whose artifact the others use."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first script, in a process of its own, has left its artifact."""
    place = tmp_path_factory.mktemp("examples")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / MAKER], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "saved: apple" in done.stdout
    return place


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_an_example_is_short_and_says_what_it_shows(name: str) -> None:
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40
    assert f"Run: python examples/{name}" in (ast.get_docstring(ast.parse(source)) or "")


@pytest.fixture
def _registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets methods and metrics that a script registers."""
    monkeypatch.setattr(bitbrush.METHODS, "_registered", dict(bitbrush.METHODS._registered))
    monkeypatch.setattr(bitbrush.METRICS, "_metrics", dict(bitbrush.METRICS))


@pytest.mark.usefixtures("_registries")
@pytest.mark.filterwarnings("default")  # as in a process of its own
@pytest.mark.parametrize("name", sorted(SCRIPTS - {MAKER}))
def test_an_example_runs(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: importing torch and diffusers takes longer than most examples."""
    if name == "read_results.py":
        pytest.importorskip("pandas")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert capsys.readouterr().out
    if name == "load_and_generate.py":
        assert (folder / "apple.png").stat().st_size > 0
