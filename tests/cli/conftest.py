"""A small model on disk, an artifact of it, and the command line run in this process."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

from bitbrush.cli import app

FAST = ("--method", "pcr", "--rounding", "nearest", "--steps", "2", "--num-prompts", "2")


@pytest.fixture
def run() -> Callable[..., Result]:
    """``run("quantize", model, "-o", folder)``; whatever is no user error is raised."""

    def invoke(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def refused(run: Callable[..., Result]) -> Callable[..., str]:
    """Runs a command that must fail as a user error does; the message, on one line."""

    def invoke(*arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.stderr
        assert not result.stdout
        return " ".join(result.stderr.split())

    return invoke


@pytest.fixture(scope="session")
def model(_one_tiny_pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    _one_tiny_pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "animals.txt"
    path.write_text("a red cat\n\n  a blue dog \na green owl\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def _artifact(model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "tiny-w4a8"
    arguments = [
        "quantize",
        str(model),
        "-o",
        str(folder),
        "--prompts",
        str(prompts),
        "--exclude",
        "*attn2.to_k",
        *FAST,
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return folder


@pytest.fixture
def artifact(_artifact: Path, tmp_path: Path) -> Path:
    """The test's own copy."""
    return Path(shutil.copytree(_artifact, tmp_path / "artifact"))


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
