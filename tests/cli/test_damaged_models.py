"""Models that are damaged, trimmed or of another kind, on the command line: one message, and nothing written."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

LOST = {"unet": "conv_in.bias", "vae": "decoder.conv_out.weight", "text_encoder": "layers.0.mlp.fc1.weight"}


@pytest.mark.parametrize("command", ["generate", "quantize", "compare", "bench"])
@pytest.mark.parametrize("component", LOST)
def test_a_missing_tensor_ends_every_command(
    refused: Callable[..., str],
    model: Path,
    artifact: Path,
    prompts: Path,
    tmp_path: Path,
    command: str,
    component: str,
) -> None:
    damaged = Path(shutil.copytree(model, tmp_path / "damaged"))
    (file,) = (damaged / component).glob("*.safetensors")
    tensors = {key: tensor for key, tensor in load_file(file).items() if not key.endswith(LOST[component])}
    save_file(tensors, file, metadata={"format": "pt"})
    output, given = tmp_path / "output", ("--prompts", prompts)
    arguments = {
        "generate": (damaged, "a cat", "-o", output, "--steps", 1),
        "quantize": (damaged, "-o", output, "--method", "rtn", "--steps", 1, "--num-prompts", 2, *given),
        "compare": (damaged, artifact, *given, "--num-prompts", 2),
        "bench": (damaged, artifact, "-o", output, *given, "--num-images", 3, "--clip", "emoji-clip"),
    }
    message = refused(command, *arguments[command])
    assert f"{component} (" in message
    assert f"{LOST[component]})" in message
    assert "fetch it again" in message
    assert not list(tmp_path.rglob("*.png"))
    assert not (output / "manifest.json").exists()


@pytest.mark.parametrize("command", ["quantize", "compare", "bench", "sensitivity"])
def test_an_artifact_is_no_model(
    refused: Callable[..., str], artifact: Path, prompts: Path, tmp_path: Path, command: str
) -> None:
    arguments = {
        "quantize": (artifact, "-o", tmp_path / "new"),
        "compare": (artifact, artifact),
        "bench": (artifact, artifact, "-o", tmp_path / "new"),
        "sensitivity": (artifact, "-o", tmp_path / "new"),
    }
    message = refused(command, *arguments[command], "--prompts", prompts)
    assert "is a quantized artifact" in message
    assert "full-precision model" in message


def test_a_model_without_its_safety_checker(run: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    trimmed = Path(shutil.copytree(model, tmp_path / "trimmed"))
    index = json.loads((trimmed / "model_index.json").read_text(encoding="utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (trimmed / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = run("generate", trimmed, "a cat", "-o", tmp_path / "images", "--steps", 1)
    assert result.exit_code == 0
    (line,) = (line for line in result.stderr.replace("\n", " ").split("warning: ")[1:] if "safety" in line)
    assert "lists a safety checker but does not hold it: images are not checked" in line


def test_a_folder_of_half_precision_alone(
    run: Callable[..., Result], tiny_pipe: StableDiffusionPipeline, prompts: Path, tmp_path: Path
) -> None:
    tiny_pipe.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    fast = ("--method", "rtn", "--steps", 1, "--num-prompts", 2, "--prompts", prompts)
    assert run("quantize", tmp_path / "half", "-o", tmp_path / "artifact", *fast).exit_code == 0
    compared = run("compare", tmp_path / "half", tmp_path / "artifact", "--prompts", prompts, "--num-prompts", 2)
    assert compared.exit_code == 0
