"""Artifacts that travel: through git, through editors of their model card, through the hub's cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import bitbrush
from bitbrush.artifact.folder import TEXT_SUFFIXES
from bitbrush.artifact.manifest import (
    ArtifactError,
    artifact_folder,
    is_artifact,
)
from bitbrush.artifact.store import verify
from bitbrush.artifact.verification import artifact_digest

COMMIT = "0" * 40


def image(root: Path) -> torch.Tensor:
    pipe: StableDiffusionPipeline = bitbrush.load(root, runtime="reference")
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat", num_inference_steps=2, generator=generator, output_type="pt").images


def with_windows_line_ends(root: Path) -> list[Path]:
    """What a checkout with core.autocrlf makes of the artifact; the files it changed."""
    texts = [path for path in root.rglob("*") if path.suffix in TEXT_SUFFIXES]
    for path in texts:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    return [path for path in texts if b"\r\n" in path.read_bytes()]


@pytest.mark.parametrize("edit", ["licensed", "removed"])
def test_the_model_card_is_for_people(artifact: Path, edit: str) -> None:
    before = artifact_digest(artifact)
    card = artifact / "README.md"
    if edit == "removed":
        card.unlink()
    else:
        card.write_text("---\nlicense: mit\n---\nThanks to everybody.\n", encoding="utf-8")
    assert verify(artifact)["files"]
    assert artifact_digest(artifact) == before
    bitbrush.load(artifact, runtime="reference")


def test_a_checkout_with_other_line_ends_is_the_same_artifact(artifact: Path, saved: Path) -> None:
    changed = {path.name for path in with_windows_line_ends(artifact)}
    assert changed >= {"manifest.json", "model_index.json", "config.json", "tokenizer.json", "merges.txt", "README.md"}
    assert artifact_digest(artifact) == artifact_digest(saved)
    assert torch.equal(image(artifact), image(saved))


def test_other_line_ends_hide_no_change(artifact: Path) -> None:
    with_windows_line_ends(artifact)
    config = artifact / "vae" / "config.json"
    config.write_bytes(config.read_bytes().replace(b'"latent_channels": 4', b'"latent_channels": 8'))
    with pytest.raises(ArtifactError, match=r"vae/config\.json was altered"):
        verify(artifact)


def test_a_weight_file_is_no_text(artifact: Path) -> None:
    weights = artifact / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    end = content.index(b"\n") if b"\n" in content else len(content)
    weights.write_bytes(content[:end] + b"\r" + content[end:])
    with pytest.raises(ArtifactError, match="was altered or truncated"):
        verify(artifact)


def test_artifacts_of_older_versions_load(artifact: Path) -> None:
    """They hash the model card, and text by its bytes, whatever its line ends."""
    merges = artifact / "tokenizer" / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name in ("README.md", "tokenizer/merges.txt"):
        digest = subprocess.run(["sha256sum", artifact / name], capture_output=True, text=True, check=True).stdout
        manifest["files"][name] = digest.split()[0]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    verify(artifact)
    (artifact / "README.md").write_text("edited", encoding="utf-8")
    bitbrush.load(artifact, runtime="reference")


COMMANDS = """
import sys
import bitbrush
from bitbrush.artifact.store import verify
from bitbrush.artifact.manifest import artifact_folder, is_artifact
from bitbrush.cli import app

out, prompts = sys.argv[1:]
assert is_artifact("someone/quantized") and not is_artifact("someone/tiny") and not is_artifact("no/body")
bitbrush.load("someone/quantized", runtime="reference")
assert bitbrush.read_manifest("someone/quantized")["base_model"] == "someone/tiny"
commands = {
    "inspect": ["inspect", "someone/quantized", "--layer", "conv_in"],
    "generate": ["generate", "someone/quantized", "a cat", "-o", f"{out}/generate"],
    "compare": ["compare", "someone/tiny", "someone/quantized", "--prompts", prompts, "--num-prompts", "3"],
    "bench": ["bench", "someone/tiny", "someone/quantized", "-o", f"{out}/bench", "--prompts", prompts,
              "--num-images", "3", "--clip", "emoji-clip", "--latents", "0"],
    "recalibrate": ["recalibrate", "someone/quantized", "-o", f"{out}/again", "--steps", "2", "--prompts", prompts],
    "quantize": ["quantize", "someone/quantized", "-o", f"{out}/new", "--prompts", prompts],
}
for name, arguments in commands.items():
    try:
        app(arguments)
    except SystemExit as end:
        print(f"command {name}: {end.code or 0}")
print("folder", artifact_folder("someone/quantized").name)
for bad in ("someone/tiny", "no/body"):
    try:
        bitbrush.load(bad)
    except ValueError as error:
        print(error)
"""


def test_a_hub_id_serves_wherever_a_folder_does(
    saved: Path, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """From a cache made by hand; huggingface_hub reads HF_HOME on import, so that this is a process of its own."""
    for name in ("quantized", "tiny"):
        repository = tmp_path / "home" / "hub" / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
        if name == "tiny":
            tiny_pipe.save_pretrained(repository / "snapshots" / COMMIT)
        else:
            shutil.copytree(saved, repository / "snapshots" / COMMIT)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\na blue dog\na green owl\n", encoding="utf-8")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", COMMANDS, str(tmp_path), str(prompts)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    ended = [line for line in done.stdout.splitlines() if line.startswith("command")]
    served = ("inspect", "generate", "compare", "bench", "recalibrate")
    assert ended == [*(f"command {name}: 0" for name in served), "command quantize: 2"], done.stdout + done.stderr
    assert "'someone/quantized' is a quantized artifact" in " ".join(done.stderr.split())
    assert f"folder {COMMIT}" in done.stdout
    for name in ("someone/tiny", "no/body"):
        assert f"{name} is no bitbrush artifact: it does not exist, nor does a hub id of that name" in done.stdout
    assert list((tmp_path / "generate").glob("*.png"))
    assert (tmp_path / "bench" / "report.html").is_file()


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "no such"])
def test_what_can_be_no_hub_id_is_looked_for_on_the_disk_alone(name: str) -> None:
    assert not is_artifact(name)
    assert artifact_folder(name) == Path(name)
    with pytest.raises(ArtifactError, match=r"is no bitbrush artifact: it does not exist$"):
        bitbrush.load(name)
