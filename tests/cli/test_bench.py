"""bitbrush bench: results and report of a small model, resumed, refused, and by two processes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

SMALL = ("--clip", "emoji-clip", "--num-images", 3, "--batch-size", 2, "--latents", 2)
PAIRED = {"PSNR (dB)", "SSIM", "image MSE", "latent MSE", "pairs alike (SSIM ≥ 0.95)"}
OF_SETS = {"Fréchet distance (emoji-clip)", "KID (emoji-clip)", "CMMD (emoji-clip)"}
MATCH = {"CLIP score (emoji-clip)", "CLIP score difference (emoji-clip)"}


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    path = tmp_path / "styled.txt"
    path.write_text("cat, red, 3d render\ndog / cat, 8k\n" + "owl, " * 200 + "\n")
    return path


@pytest.fixture
def bench(run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs it on candidates with further options; gives the results."""

    def invoke(*arguments: object, output: Path = tmp_path / "bench") -> dict[str, Any]:
        result = run("bench", model, *arguments, "-o", output, "--prompts", prompts, *SMALL)
        assert result.exit_code == 0, result.output
        return json.loads((output / "results.json").read_text(encoding="utf-8"))

    return invoke


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on who computed it."""
    return {key: results[key] for key in ("reference", "floor", "candidates", "networks", "protocol")}


def test_results_hold_every_figure_of_every_set(
    bench: Callable[..., dict[str, Any]], model: Path, artifact: Path, unseen: Path, tmp_path: Path
) -> None:
    results = bench(f"quantized={artifact}", f"same={model}", "--unseen-prompts", unseen)
    assert results["schema_version"] == 1
    assert [(one["name"], one["domain"]) for one in results["protocol"]["prompt_sets"]] == [
        ("animals", "calibration style"),
        ("styled", "unseen style"),
    ]
    assert (results["protocol"]["steps"], results["protocol"]["denoiser_calls"]) == (2, 3)  # of the artifact's recipe
    quantized, same = results["candidates"]
    assert (quantized["name"], quantized["weight_bits"]) == ("quantized", 4)
    assert quantized["operators"]["Linear, float32"] > 0  # what the recipe excludes
    for entry in (results["floor"], quantized, same):
        for one in entry["sets"].values():
            assert set(one["figures"]) == PAIRED | OF_SETS | MATCH
            assert all(f["low"] <= f["mean"] <= f["high"] for f in one["figures"].values())
            assert one["figures"]["PSNR (dB)"]["n"] == 3
            assert one["figures"]["latent MSE"]["n"] == 2
            assert len(one["latent_mse_by_step"]) == 3
    assert set(quantized["gaps"]) == {"PSNR (dB)", "SSIM", "image MSE", "CLIP score difference (emoji-clip)"}
    assert results["absent"] == ["LPIPS: no weights were given (--lpips)"]
    assert (tmp_path / "bench" / "report.html").stat().st_size > 10_000


def test_a_candidate_identical_to_the_reference_is_indistinguishable(
    bench: Callable[..., dict[str, Any]], model: Path
) -> None:
    (same,) = bench(model)["candidates"]
    assert same["verdict"]["level"] == "indistinguishable"
    (figures,) = (one["figures"] for one in same["sets"].values())
    for metric in OF_SETS | {"image MSE", "latent MSE", "CLIP score difference (emoji-clip)"}:
        assert (figures[metric]["mean"], figures[metric]["low"], figures[metric]["high"]) == (0, 0, 0)


def test_a_second_run_generates_nothing_and_finds_the_same(
    bench: Callable[..., dict[str, Any]], artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench(artifact)
    lost = next((tmp_path / "bench" / "pictures" / "artifact").rglob("00001.png"))
    before = lost.read_bytes()
    lost.unlink()  # a killed run
    assert figures(bench(artifact)) == figures(first)
    assert lost.read_bytes() == before
    monkeypatch.setattr("bitbrush.bench.filling.generate_batch", None)  # to call it would fail
    assert figures(bench(artifact)) == figures(first)


def test_pictures_are_shared_between_benchmarks(
    bench: Callable[..., dict[str, Any]], model: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    first = bench(artifact, "--pictures", shared)
    monkeypatch.setattr("bitbrush.bench.filling.generate_batch", None)
    again = bench(artifact, "--pictures", shared, output=tmp_path / "other")
    assert figures(again) == figures(first)
    assert not (tmp_path / "other" / "pictures").exists()


def test_what_cannot_be_measured_is_a_row_and_the_rest_is_there(
    bench: Callable[..., dict[str, Any]], artifact: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(artifact, tmp_path / "of-another-model"))
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "base_model_digest": "f" * 64}))
    cut = Path(shutil.copytree(artifact, tmp_path / "cut"))
    weights = cut / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    results = bench(artifact, other, cut, "gone=nowhere/model")
    good, *bad = results["candidates"]
    assert good["problem"] is None
    assert good["sets"]
    for one, problem in zip(bad, ("made of other weights", "altered or truncated", "neither bundled"), strict=True):
        assert problem in one["problem"]
        assert (one["sets"], one["verdict"]) == ({}, None)
    page = (tmp_path / "bench" / "report.html").read_text(encoding="utf-8")
    assert "not measured" in page
    assert "made of other weights" in page


def test_bad_input_is_refused_before_anything_is_generated(
    refused: Callable[..., str], model: Path, artifact: Path, prompts: Path, tmp_path: Path
) -> None:
    def message(*arguments: object, reference: object = model) -> str:
        return refused("bench", reference, artifact, "-o", tmp_path / "b", "--prompts", prompts, *SMALL, *arguments)

    assert "name the full-precision model it was made of" in message(reference=artifact)
    assert "expected whole numbers with commas" in message("--seeds", "1;2")
    assert "each once" in message("--seeds", "1,1")
    assert "CLIP 'emoji-sd' cannot be used" in message("--clip", "emoji-sd")
    assert "LPIPS weights" in message("--lpips", tmp_path / "none.safetensors")
    assert "torch-fidelity" in message("--feature-extractor", tmp_path / "inception.pth")
    assert "makes 2 pictures" in message("--num-images", 2)
    assert "two prompt sets are called 'animals'" in message("--unseen-prompts", prompts)
    assert not (tmp_path / "b").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    assert "holds thesis.txt, which no benchmark wrote" in message()


def test_two_processes_find_what_one_finds(
    bench: Callable[..., dict[str, Any]], model: Path, artifact: Path, prompts: Path, tmp_path: Path
) -> None:
    alone = bench(artifact)
    command = ["bench", model, artifact, "-o", tmp_path / "two", "--prompts", prompts, *SMALL]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bitbrush"]
    done = subprocess.run(
        [*launch, *map(str, command)], env=os.environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    together = json.loads((tmp_path / "two" / "results.json").read_text(encoding="utf-8"))
    assert figures(together) == figures(alone)
