"""bitbrush bench: results and report of a small model, resumed, refused, and by two processes."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import bitbrush
from bitbrush.bench.experiments.candidates import named_candidates
from bitbrush.bench.images.generation import generate_batch
from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.affine import QParams
from tests.bench.results_files import read_results, read_values
from tests.recorded_progress import RecordedProgress

SMALL = ("--clip", "emoji-clip", "--num-images", 3, "--batch-size", 2, "--latents", 2)
GEOMETRIC, MEDIAN = "latent MSE, geometric mean", "latent MSE, median"
LATENT = {GEOMETRIC, MEDIAN, "latent MSE"}
PAIRED = {"PSNR (dB)", "PSNR (dB), median", "SSIM", "image MSE", "pairs alike (SSIM ≥ 0.95)", *LATENT}
OF_SETS = {"Fréchet distance (emoji-clip)", "KID, unpaired terms (emoji-clip)", "CMMD, unpaired terms (emoji-clip)"}
MATCH = {f"CLIP score{what} (emoji-clip)" for what in ("", " difference", " change")}


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    path = tmp_path / "styled.txt"
    path.write_text("cat, red, 3d render\ndog / cat, 8k\n" + "owl, " * 200 + "\n")
    return path


MANY = ("--num-images", 36, "--batch-size", 18, "--latents", 8)
"""The fewest images that make a candidate indistinguishable, if all of their pairs are alike."""


@pytest.fixture
def many(tmp_path: Path) -> Path:
    path = tmp_path / "many.txt"
    path.write_text("".join(f"{number} red cats\n" for number in range(36)))
    return path


@pytest.fixture
def bench(run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs it on candidates with further options; gives the results."""

    def invoke(
        *arguments: object, output: Path = tmp_path / "bench", texts: Path = prompts, code: int = 0
    ) -> dict[str, Any]:
        result = run("bench", model, *SMALL, *arguments, "-o", output, "--prompts", texts)
        assert result.exit_code == code, result.output
        return read_results(output)

    return invoke


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """Returns the results that are the same whoever computed them, and whenever."""
    kept = {key: results[key] for key in ("reference", "floor", "candidates", "networks", "protocol", "power")}
    for one in (kept["reference"], *kept["candidates"]):
        assert one.pop("seconds_per_image", 1) > 0
    return kept


def test_results_hold_every_figure_of_every_set(
    bench: Callable[..., dict[str, Any]], model: Path, artifact: Path, unseen: Path, tmp_path: Path
) -> None:
    results = bench(f"quantized={artifact}", f"same={model}", "--unseen-prompts", unseen)
    assert results["experiment"] == "bench"
    assert [(one["name"], one["domain"]) for one in results["protocol"]["prompt_sets"]] == [
        ("animals", "calibration style"),
        ("styled", "unseen style"),
    ]
    assert (results["protocol"]["steps"], results["protocol"]["denoiser_calls"]) == (2, 3)  # of the artifact's recipe
    quantized, same = results["candidates"]
    assert (quantized["name"], quantized["weight_bits"]) == ("quantized", 4)
    assert quantized["operators"]["Linear, float32"] > 0  # what the recipe excludes
    for entry in (results["floor"], quantized, same):
        every = (PAIRED | OF_SETS | MATCH) - ({GEOMETRIC} if entry is same else set())  # of an error of 0 there is none
        for one in entry["sets"].values():
            assert set(one["figures"]) == every
            assert all(f["low"] <= f["mean"] <= f["high"] for name, f in one["figures"].items() if "median" not in name)
            assert (one["figures"][MEDIAN]["low"], one["figures"][MEDIAN]["high"]) == (None, None)  # of two images
            assert one["figures"]["PSNR (dB)"]["n"] == 3
            assert one["figures"]["latent MSE"]["n"] == 2
            assert len(one["latent_mse_by_step"]) == 3
        assert set(entry["together"]) == every
        assert entry["together"]["PSNR (dB)"]["n"] == 6
        means = [one["figures"]["PSNR (dB)"]["mean"] for one in entry["sets"].values()]
        assert entry["together"]["PSNR (dB)"]["mean"] == pytest.approx(sum(means) / 2)
    assert set(quantized["gaps"]) == {"PSNR (dB)", "SSIM", "image MSE", "CLIP score difference (emoji-clip)"}
    assert results["absent"] == ["LPIPS: no weights were given (--lpips)"]
    assert (tmp_path / "bench" / "report.html").stat().st_size > 10_000


def test_a_candidate_identical_to_the_reference_is_indistinguishable(
    bench: Callable[..., dict[str, Any]], model: Path, many: Path
) -> None:
    (same,) = bench(model, *MANY, texts=many)["candidates"]
    assert same["verdict"]["level"] == "indistinguishable"
    assert same["together"] == {}  # of one set there is nothing to put together
    (figures,) = (one["figures"] for one in same["sets"].values())
    for metric in OF_SETS | {"image MSE", "latent MSE", "latent MSE, median"} | MATCH - {"CLIP score (emoji-clip)"}:
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
    monkeypatch.setattr("bitbrush.bench.images.filling.generate_batch", None)  # to call it would fail
    assert figures(bench(artifact)) == figures(first)


def test_pictures_are_shared_between_benchmarks(
    bench: Callable[..., dict[str, Any]], model: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    first = bench(artifact, "--pictures", shared)
    monkeypatch.setattr("bitbrush.bench.images.filling.generate_batch", None)
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
    results = bench(artifact, other, cut, code=1)
    good, *bad = results["candidates"]
    assert good["problem"] is None
    assert good["sets"]
    for one, problem in zip(bad, ("made of other weights", "altered or truncated"), strict=True):
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

    assert "is a quantized artifact, and a full-precision model is needed" in message(reference=artifact)
    for gone in ("gone=nowhere/model", tmp_path / "nowhere", prompts):
        assert "is no artifact, and no model to compare" in message(gone)
    assert "cannot be given 'strength'" in message("--pipeline-argument", "strength=1")
    assert "steps is 1001, and PNDMScheduler has at most 1000" in message("--steps", 1001)
    assert "--pictures is" in message("--pictures", artifact / "pictures")
    assert f"--output is {artifact / 'bench'}, which is or lies in" in message("-o", artifact / "bench")
    assert "expected whole numbers with commas" in message("--seeds", "1;2")
    assert "each once" in message("--seeds", "1,1")
    assert "CLIP 'emoji-sd' cannot be used" in message("--clip", "emoji-sd")
    assert "LPIPS weights" in message("--lpips", tmp_path / "none.safetensors")
    assert "torch-fidelity" in message("--feature-extractor", tmp_path / "inception.pth")
    assert "makes 2 images" in message("--num-images", 2)
    assert "two prompt sets are called 'animals'" in message("--unseen-prompts", prompts)
    assert not (tmp_path / "b").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    assert "holds thesis.txt, which no benchmark wrote" in message()


@pytest.mark.slow  # tests/artifact/test_shared_work.py has a benchmark by two processes without torchrun
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


Damage = Callable[[QuantizedLayer], QuantizedLayer]


@pytest.fixture
def damaged(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Damage], tuple[Path, Path]]:
    """An artifact at 16 bits, which changes next to nothing, and the same with every layer damaged."""
    monkeypatch.setattr("bitbrush.artifact.store._require_loadable", lambda *_: None)  # it refuses to keep NaN
    pipe = bitbrush.load_full_precision(model)
    keys = {"weights": 8, "activations": 16, "rounding": "nearest", "steps": 4, "num_prompts": 2}
    texts = prompts.read_text().splitlines()
    whole = bitbrush.quantize(pipe, bitbrush.METHODS["one-shot"].recipe(keys), texts)

    def make(damage: Damage) -> tuple[Path, Path]:
        outcome = replace(whole.outcome, layers=tuple(map(damage, whole.outcome.layers)))
        broken = replace(whole, outcome=outcome)
        made = [
            bitbrush.save(one, tmp_path / name, base_model=str(model))
            for one, name in ((whole, "whole"), (broken, "broken"))
        ]
        return made[0], made[1]

    return make


def test_a_candidate_with_one_broken_step_is_clearly_worse(
    bench: Callable[..., dict[str, Any]], damaged: Callable[[Damage], tuple[Path, Path]], many: Path
) -> None:
    def third_step(layer: QuantizedLayer) -> QuantizedLayer:
        all_qparams = list(layer.activations.qparams)
        all_qparams[2] = QParams(all_qparams[2].scale * 3e4, 0, all_qparams[2].bits)
        return replace(layer, activations=replace(layer.activations, qparams=tuple(all_qparams)))

    whole, broken = bench(*damaged(third_step), *MANY, texts=many)["candidates"]
    assert not any("alike" in reason for reason in whole["verdict"]["reasons"])
    assert broken["verdict"]["level"] == "clearly worse"
    (reason,) = broken["verdict"]["reasons"]
    assert re.fullmatch(r"many: [0-6]% of 36 pairs alike \(0% to (10|15|19)%\)", reason)
    errors = [[step["mean"] for step in one["sets"]["many"]["latent_mse_by_step"]] for one in (whole, broken)]
    assert errors[1][:3] == errors[0][:3]  # PNDM calls the second timestep twice: the third is the fourth call
    assert errors[1][3] > 100 * errors[0][3]


def test_a_candidate_that_makes_nan_is_a_row_with_a_verdict(
    bench: Callable[..., dict[str, Any]],
    artifact: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The artifact of an overflowing denoiser is refused when it is loaded; another pipeline may come to it later."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "overflowing.py").write_text(
        f"""import bitbrush


def pipeline():
    pipe = bitbrush.load_full_precision({str(model)!r})
    pipe.unet.register_forward_hook(lambda _, __, y: (y[0] * 3e38 * 3e38,))
    return pipe
""",
        encoding="utf-8",
    )
    whole, broken = bench(artifact, "overflowing:pipeline")["candidates"]
    assert whole["verdict"]["level"] == "too few to tell"
    assert broken["verdict"] == {"level": "clearly worse", "reasons": ["animals: 2 of 3 images have NaN latents"]}
    of_set = broken["sets"]["animals"]
    assert list(of_set["defects"].values()) == ["NaN latents", "NaN latents", "black"]  # two kept their latents
    assert not LATENT & set(of_set["figures"])


def test_an_interrupted_run_goes_on_where_it_stopped(
    bench: Callable[..., dict[str, Any]],
    run: Callable[..., Result],
    model: Path,
    artifact: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = bench(artifact, output=tmp_path / "whole")
    calls = 0

    def killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return generate_batch(*arguments)

    monkeypatch.setattr("bitbrush.bench.images.filling.generate_batch", killed)
    command = ("bench", model, artifact, "-o", tmp_path / "cut", "--prompts", prompts, *SMALL)
    assert run(*command).exit_code == 130
    assert not (tmp_path / "cut" / "results.json").exists()
    calls = 10
    assert figures(bench(artifact, output=tmp_path / "cut")) == figures(whole)
    assert calls == 10 + 6 - 3  # three sets of two batches each, three of which were there


def test_python_has_the_same_names_and_figures(
    bench: Callable[..., dict[str, Any]], model: Path, artifact: Path, prompts: Path, tmp_path: Path
) -> None:
    progress = RecordedProgress()
    results = bitbrush.benchmark(
        str(model),
        {"artifact": str(artifact)},
        tmp_path / "python",
        prompts=[str(prompts)],
        clip="emoji-clip",
        num_images=3,
        batch_size=2,
        latents=2,
        progress=progress,
    )
    assert figures(results) == figures(bench(artifact))
    progress.require_as_planned("generating")
    assert {"image features", "pairs", "figures"} <= {phase for phase, _ in progress.reported}
    with pytest.raises(TypeError, match="num_pictures"):
        bitbrush.benchmark(str(model), {}, tmp_path / "python", num_pictures=3)


@pytest.mark.parametrize("name", ["features-*/*.npy", "00000.safetensors"])
def test_damaged_files_beside_the_pictures_are_named(
    bench: Callable[..., dict[str, Any]],
    refused: Callable[..., str],
    model: Path,
    artifact: Path,
    prompts: Path,
    tmp_path: Path,
    name: str,
) -> None:
    bench(artifact)
    damaged = next((tmp_path / "bench" / "pictures" / "artifact").rglob(name))
    damaged.write_bytes(damaged.read_bytes()[:20])
    said = refused("bench", model, artifact, "-o", tmp_path / "bench", "--prompts", prompts, *SMALL)
    assert f"{damaged.name} is damaged" in said
    assert "delete it" in said


def test_metrics_from_outside_are_measured_like_others(
    bench: Callable[..., dict[str, Any]], artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitbrush.METRICS, "_metrics", {})
    bitbrush.register_metric(bitbrush.PairedMetric("error", lambda a, b: abs(a - 1.0 * b).mean((1, 2, 3))))
    bitbrush.register_metric(bitbrush.ImageMetric("light", lambda images: images.mean((1, 2, 3))))
    results = bench(artifact)
    figures = results["candidates"][0]["sets"]["animals"]["figures"]
    light = results["reference"]["sets"]["animals"]["figures"]["light"]["mean"]
    assert figures["error"]["low"] <= figures["error"]["mean"] <= figures["error"]["high"]
    assert figures["light, difference"]["mean"] == pytest.approx(figures["light"]["mean"] - light)
    rows = [row for row in read_values(tmp_path / "bench") if row["metric"] in ("error", "light")]
    assert {(row["candidate"], row["metric"]) for row in rows} >= {("artifact", "error"), ("full precision", "light")}
    page = (tmp_path / "bench" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("error", "light", "light, difference"))


def test_candidates_have_names(tmp_path: Path) -> None:
    (tmp_path / "lr=0.1").mkdir()
    named = named_candidates(["a/w4", "b/w4", "mine=c/w4=x", str(tmp_path / "lr=0.1")])
    assert named == {"w4": "a/w4", "w4 (2)": "b/w4", "mine": "c/w4=x", "lr=0.1": str(tmp_path / "lr=0.1")}
