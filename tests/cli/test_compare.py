"""bitbrush compare: paired figures of every prompt set, as tables and as JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from diffusers import StableDiffusionPipeline

from bitbrush.artifact.manifest import read_manifest
from bitbrush.artifact.sizes import denoiser_sizes
from tests.bench.results_files import valid_results

MEDIAN = "latent MSE, median"
METRICS = {"PSNR (dB)", "SSIM", "image MSE", "latent MSE, geometric mean", MEDIAN, "latent MSE"}


def test_a_table_for_each_set(run: Callable[..., Result], model: Path, artifact: Path, prompts: Path) -> None:
    result = run("compare", model, artifact, "--prompts", prompts, "--num-prompts", 2)
    assert result.exit_code == 0
    assert "animals, 2 pairs" in result.stdout
    assert all(metric in result.stdout for metric in (*METRICS, "another seed", "pcr W4A8"))
    assert denoiser_sizes(read_manifest(artifact)).text in result.stdout
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 100


def test_json_holds_every_figure_and_nothing_else_is_printed(
    run: Callable[..., Result], model: Path, artifact: Path, prompts: Path
) -> None:
    result = run("compare", model, artifact, "--prompts", prompts, "--json")
    document = valid_results(result.stdout)
    assert document["experiment"] == "compare"
    assert document["recipe"]["exclude"] == ["*attn2.to_k"]
    figures = document["sets"]["animals"]
    for candidate in ("candidate", "other_seed"):
        assert set(figures[candidate]) == METRICS
        median = figures[candidate].pop(MEDIAN)
        assert (median["low"], median["high"]) == (None, None)  # three values bound none
        assert all(one["low"] <= one["mean"] <= one["high"] and one["n"] == 3 for one in figures[candidate].values())
    assert (
        document["denoiser_bytes"]["packed"] == (artifact / "unet/diffusion_pytorch_model.safetensors").stat().st_size
    )
    assert figures["latent_mse_by_step"][-1] == pytest.approx(
        figures["candidate"]["latent MSE, geometric mean"]["mean"]
    )
    assert len(figures["latent_mse_by_step"]) == 3


def test_the_quantized_is_nearer_than_another_seed(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path
) -> None:
    options = ("--weights", 8, "--activations", 12, "--rounding", "nearest", "--steps", 2, "--num-prompts", 2)
    assert run("quantize", model, "-o", tmp_path / "w8", "--prompts", prompts, *options).exit_code == 0
    figures = json.loads(run("compare", model, tmp_path / "w8", "--prompts", prompts, "--json").stdout)["sets"][
        "animals"
    ]
    assert figures["candidate"]["PSNR (dB)"]["low"] > figures["other_seed"]["PSNR (dB)"]["high"]


def test_what_cannot_be_compared_is_refused(
    refused: Callable[..., str], model: Path, artifact: Path, prompts: Path
) -> None:
    assert "compare an artifact with the model it was made of" in refused(
        "compare", "emoji-sd", artifact, "--prompts", prompts
    )
    assert "is no bitbrush artifact: it has no manifest.json" in refused("compare", model, model, "--prompts", prompts)
    assert "has no prompts of its own" in refused("compare", model, artifact)
    assert "bundled sets of emoji-sd are coco, sdp" in refused("compare", "emoji-sd", artifact, "--prompts", "cocoa")


def test_prompts_of_two_sets(
    run: Callable[..., Result], model: Path, artifact: Path, prompts: Path, tiny_pipe: StableDiffusionPipeline
) -> None:
    other = prompts.with_name("words.txt")
    other.write_text("cat, red, " + "icon, " * 40, encoding="utf-8")
    result = run("compare", model, artifact, "--prompts", prompts, "--prompts", other, "--num-prompts", 1, "--json")
    assert set(json.loads(result.stdout)["sets"]) == {"animals", "words"}
    assert "the text encoder takes 32" in " ".join(result.stderr.split())
