"""Names of models: unknown ones in a moment, with those that may have been meant."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bitbrush.artifact.manifest import ArtifactError, is_artifact, read_manifest
from bitbrush.sources import model_names
from bitbrush.sources.model_names import (
    MODEL_INDEX,
    UnknownModelError,
    did_you_mean,
    require_known,
)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with a pipeline and a checkpoint."""
    (tmp_path / "Realistic-Vision").mkdir()
    (tmp_path / "Realistic-Vision" / MODEL_INDEX).touch()
    (tmp_path / "dreamshaper.safetensors").touch()
    (tmp_path / "notes").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ["emoji-sd", "emoji-clip"])
def test_bundled_names_are_known(name: str) -> None:
    require_known(name)


def test_what_is_there_is_known(models: Path) -> None:
    require_known(models / "Realistic-Vision")
    require_known(models / "notes")  # no pipeline, as loading it says
    require_known(models / "dreamshaper.safetensors")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("emoji-ds", "did you mean 'emoji-sd' or 'emoji-sdxl'?"),
        ("emoji_sdxl", "did you mean 'emoji-sdxl'"),
        ("EMOJI-SD", "did you mean 'emoji-sd'"),
        ("someone/emoji-sd", "did you mean 'emoji-sd'"),
    ],
)
def test_bundled_names_are_meant(name: str, meant: str) -> None:
    with pytest.raises(UnknownModelError, match=r"is neither bundled .emoji-sd, .*nor a directory") as raised:
        require_known(name)
    assert meant in str(raised.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("realistic-vision", "Realistic-Vision"),
        ("Realistc-Vision", "Realistic-Vision"),
        ("dreamshaper", "dreamshaper.safetensors"),
        ("dreamshapr.safetensors", "dreamshaper.safetensors"),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_folders_and_files_beside_are_meant(
    models: Path, monkeypatch: pytest.MonkeyPatch, name: str, meant: str, inside: bool
) -> None:
    monkeypatch.chdir(models if inside else models.parent)
    prefix = Path() if inside else Path(models.name)
    with pytest.raises(UnknownModelError) as raised:
        require_known(str(prefix / name))
    assert f"did you mean {str(prefix / meant)!r}?" in str(raised.value)


def test_cached_hub_ids_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models--stable--diffusion-xl").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert did_you_mean("stable/difusion-xl") == "; did you mean 'stable/diffusion-xl'?"
    assert did_you_mean("quite/another") == ""


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def unreachable(address: tuple[str, int], timeout: float) -> None:
        asked.append(address)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_names, "getproxies", dict)
    monkeypatch.setattr("socket.create_connection", unreachable)
    with pytest.raises(UnknownModelError, match="cannot be reached: Name or service not known"):
        require_known("someone/nothing")
    assert len(asked) == 1
    monkeypatch.setattr(model_names, "getproxies", lambda: {"https": "proxy.example:80"})
    require_known("someone/nothing")  # the proxy may reach it
    assert len(asked) == 1


def test_a_revision_is_told() -> None:
    with pytest.raises(UnknownModelError, match=r"model .a/b. with revision 'x' is neither .*HF_HUB_OFFLINE is set"):
        require_known("a/b", "x")


@pytest.mark.parametrize("command", ["quantize", "sensitivity", "ablate", "generate", "compare", "bench", "plans"])
def test_commands_know_it_before_they_import_diffusers(command: str, tmp_path: Path) -> None:
    rest = {"generate": ["a cat"], "compare": ["x"], "bench": ["x"], "plans": ["x"]}.get(command, [])
    output = [] if command == "compare" else ["-o", str(tmp_path / "new")]
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from bitbrush.cli import app\n"
        "result = CliRunner().invoke(app, sys.argv[1:])\n"
        "assert result.exit_code == 2, result.output\n"
        "assert 'did you mean' in result.stderr, result.stderr\n"
        "print({'diffusers', 'transformers'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, "emoji-ds", *rest, *output], capture_output=True, text=True, check=False
    )
    assert done.stdout == "set()\n", done.stderr


def test_a_hub_out_of_reach_is_not_asked_for_artifacts(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitbrush.artifact.manifest.hf_hub_download", None)
    monkeypatch.chdir(models)
    assert not is_artifact("someone/nothing")
    with pytest.raises(ArtifactError, match=r"nor does a hub id of that name in the cache or within reach$"):
        read_manifest("someone/nothing")


@pytest.mark.parametrize(("name", "meant"), [("realistic-visio", "Realistic-Vision"), ("emoji-ds", None)])
def test_artifacts_that_are_meant_are_no_bundled_models(
    models: Path, monkeypatch: pytest.MonkeyPatch, name: str, meant: str | None
) -> None:
    monkeypatch.chdir(models)
    with pytest.raises(ArtifactError, match="is no bitbrush artifact: it does not exist") as raised:
        read_manifest(name)
    assert str(raised.value).endswith(f"; did you mean {meant!r}?" if meant else "does not exist")
