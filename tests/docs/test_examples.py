"""Every script of ``examples/`` runs by itself, and is short."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {path.name for path in EXAMPLES.glob("*.py")}
MAKER = "quantize_and_save.py"
"""The script whose artifact the others use."""


def run(name: str, folder: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first script has left its artifact."""
    place = tmp_path_factory.mktemp("examples")
    assert "saved: apple" in run(MAKER, place)
    return place


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_an_example_is_short_and_says_what_it_shows(name: str) -> None:
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40
    assert f"Run: python examples/{name}" in (ast.get_docstring(ast.parse(source)) or "")


@pytest.mark.parametrize("name", sorted(SCRIPTS - {MAKER}))
def test_an_example_runs(name: str, folder: Path) -> None:
    if name == "read_results.py":
        pytest.importorskip("pandas")
    assert run(name, folder)
    if name == "load_and_generate.py":
        assert (folder / "apple.png").stat().st_size > 0
