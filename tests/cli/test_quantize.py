"""bitbrush quantize: what it makes and says, which key wins, and every input it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FAST = ("--method", "pcr", "--rounding", "nearest", "--steps", "2", "--num-prompts", "2")


def recipe_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["recipe"]


def test_the_best_method_is_the_default(run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path) -> None:
    result = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *FAST[2:])
    assert result.exit_code == 0
    assert "best, 4-bit weights, measured by layer (nearest rounding), 8-bit activations" in result.stderr
    assert "sensitivity" in result.stdout


def test_makes_an_artifact_and_says_what_it_is(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path
) -> None:
    result = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *FAST)
    assert result.exit_code == 0
    for text in ("progressive calibration", "6", "layers quantized", "MiB", f"bitbrush generate {tmp_path / 'new'}"):
        assert text in result.stdout
    assert "pcr, 4-bit weights (nearest rounding), 8-bit activations, relaxed 0.8:1@10" in result.stderr
    assert recipe_of(tmp_path / "new")["steps"] == 2


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("recipe.toml", 'weights = 3\nactivations = 6\nsteps = 2\nnum_prompts = 1\nrounding = "nearest"\n'),
        ("recipe.json", '{"weights": 3, "activations": 6, "steps": 2, "num_prompts": 1, "rounding": "nearest"}'),
    ],
)
def test_options_come_before_the_file_and_the_file_before_the_method(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path, file: str, text: str
) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    options = ("--recipe", tmp_path / file, "--prompts", prompts, "--weights", 5, "--exclude", "conv_in")
    assert run("quantize", model, "-o", tmp_path / "new", *options).exit_code == 0
    recipe = recipe_of(tmp_path / "new")
    assert (recipe["weights"], recipe["activations"], recipe["steps"]) == (5, 6, 2)
    assert (recipe["method"], recipe["relax"], recipe["exclude"]) == ("best", "auto:6.4", ["conv_in"])


def test_a_method_from_the_file_brings_its_defaults(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text('method = "rtn"\nsteps = 2\nnum_prompts = 1\n', encoding="utf-8")
    options = ("--recipe", tmp_path / "r.toml", "--prompts", prompts)
    assert run("quantize", model, "-o", tmp_path / "new", *options).exit_code == 0
    recipe = recipe_of(tmp_path / "new")
    assert (recipe["method"], recipe["relax"], recipe["activation_range"]) == ("rtn", "none", "min-max")


def test_replaces_an_artifact(run: Callable[..., Result], model: Path, prompts: Path, artifact: Path) -> None:
    assert run("quantize", model, "-o", artifact, "--prompts", prompts, *FAST, "--relax", "none").exit_code == 0
    assert recipe_of(artifact)["relax"] == "none"


def test_a_prompt_too_long_is_told_and_cut(run: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red cat\n" + "dog " * 200, encoding="utf-8")
    result = run("quantize", model, "-o", tmp_path / "new", "--prompts", tmp_path / "p.txt", *FAST)
    assert result.exit_code == 0
    assert "has 202 tokens, the text encoder takes 32; dropped:" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", 1), "weights is 1; it must be a whole number from 2 to 8"),
        (("--weights", 9), "weights is 9; it must be a whole number from 2 to 8"),
        (("--activations", 3), "activations is 3; it must be a whole number from 4 to 16"),
        (("--activations", 17), "activations is 17; it must be a whole number from 4 to 16"),
        (("--relax", "1:0.8@10"), "relaxed interval is 1:0.8; fractions of the steps with 0 <= start < end <= 1"),
        (("--relax", "0.8:1.2@10"), "relaxed interval is 0.8:1.2"),
        (("--relax", "0.8:1@17"), "relaxed bits is 17; supported are 2 to 16"),
        (("--relax", "0.8:1@8"), "8 bits are no more than the 8 bits"),
        (("--relax", "late"), "relax is 'late'; expected START:END@BITS"),
        (
            ("--method", "magic"),
            "method is 'magic'; known are pcr, best, one-shot, ptq4dm, qdiffusion, smoothquant, dynamic, rtn, paper",
        ),
        (("--rounding", "up"), "rounding is 'up'; choose from nearest, learned"),
        (("--steps", 0), "steps"),
        (("--num-prompts", 9), "num_prompts is 9, but only 3 calibration prompts are given"),
        (("--scheduler", "dice"), "scheduler is 'dice'; known are pndm"),
        (("--exclude", "nothing.like.it"), "exclude pattern 'nothing.like.it' matches none of"),
    ],
)
def test_bad_options_are_refused(
    refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path, options: tuple, message: str
) -> None:
    assert message in refused("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *FAST, *options)
    assert not list(tmp_path.iterdir())


def test_an_unknown_recipe_key_is_refused(
    refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text("weihgts = 4\n", encoding="utf-8")
    said = refused("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, "--recipe", tmp_path / "r.toml")
    assert "unknown recipe key 'weihgts' = 4; known are method, weights" in said
    said = refused("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, "--recipe", tmp_path / "no.toml")
    assert "no.toml cannot be read" in said


def test_an_unknown_model_is_refused(refused: Callable[..., str], prompts: Path, tmp_path: Path) -> None:
    said = refused("quantize", "no-such-model", "-o", tmp_path / "new", "--prompts", prompts)
    assert "model 'no-such-model' is neither bundled (emoji-sd, emoji-sdxl, emoji-clip), nor a directory" in said
    (tmp_path / "empty").mkdir()
    said = refused("quantize", tmp_path / "empty", "-o", tmp_path / "new", "--prompts", prompts)
    assert "is no diffusers pipeline: it has no model_index.json" in said
    assert "emoji-sd and emoji-sdxl are" in refused(
        "quantize", "emoji-clip", "-o", tmp_path / "new", "--prompts", prompts
    )


def test_prompts_that_cannot_be_had_are_refused(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("ein gr\xfcner Apfel".encode("latin-1"))
    new = tmp_path / "new"
    for name, message in {
        "empty.txt": "the file is empty; write one prompt a line",
        "latin.txt": "the file is not UTF-8 text",
        "none.txt": "there is no such file",
        ".": "the file cannot be read",
    }.items():
        assert message in refused("quantize", model, "-o", new, "--prompts", tmp_path / name)
    assert "has no prompts of its own; name a file of prompts" in refused("quantize", model, "-o", new)
    assert not new.exists()


def test_what_is_not_ours_is_left_alone(
    refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all I have", encoding="utf-8")
    said = refused("quantize", model, "-o", tmp_path / "mine", "--prompts", prompts)
    assert "exists and is no bitbrush artifact to replace; choose another directory" in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_nan_weights_are_refused(refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    tensors = load_file(broken / WEIGHTS)
    tensors["conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(tensors, broken / WEIGHTS, metadata={"format": "pt"})
    said = refused("quantize", broken, "-o", tmp_path / "new", "--prompts", prompts, *FAST)
    assert "1 of 288 weights of layer conv_in are NaN or infinite; the checkpoint is damaged" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("method", ["pcr", "best"])
def test_activations_that_overflow_are_refused(
    refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path, method: str
) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    tensors = load_file(broken / WEIGHTS)
    tensors["conv_in.weight"] *= 1e38
    save_file(tensors, broken / WEIGHTS, metadata={"format": "pt"})
    options = (*FAST, "--method", method)
    said = refused("quantize", broken, "-o", tmp_path / "new", "--prompts", prompts, *options)
    assert "layer " in said
    assert "at step 0 (timestep " in said
    assert "during calibration" in said
    assert not (tmp_path / "new").exists()
