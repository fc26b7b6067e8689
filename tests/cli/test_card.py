"""bitbrush card: figures of a benchmark and the speed of this machine, on request."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import bitbrush
from bitbrush.artifact.card import model_card
from bitbrush.artifact.manifest import manifest_digest
from bitbrush.artifact.single_file import pack
from bitbrush.artifact.verification import artifact_digest
from bitbrush.bench.experiments import evidence
from bitbrush.bench.experiments.evidence import bench_table, call_time
from bitbrush.cli import app
from bitbrush.methods.recipe import Recipe


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        app([str(one) for one in arguments])
    return int(end.value.code or 0)


def results(folder: Path, digest: str, **changes: Any) -> Path:
    figures = {
        "PSNR (dB)": {"mean": 31.25, "low": 30.5, "high": 32.0, "n": 64},
        "latent MSE, median": {"mean": 0.01, "low": None, "high": None, "n": 64},
        "own": {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 64},
    }
    other = {"PSNR (dB)": {"mean": 11.5, "low": 11.0, "high": 12.0, "n": 64}}
    document = {
        "protocol": {"steps": 20, "guidance_scale": 7.5, "scheduler": "PNDMScheduler", "seeds": [1, 2]},
        "floor": {"sets": {"coco": {"figures": other}}},
        "candidates": [
            {"name": "other", "digest": "0" * 64, "sets": {}},
            {"name": "ours", "digest": digest, "verdict": {"level": "fine"}, "sets": {"coco": {"figures": figures}}},
        ],
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_the_figures_of_this_artifact_are_on_the_card(artifact: Path, tmp_path: Path) -> None:
    folder = results(tmp_path / "results", artifact_digest(artifact))
    before = manifest_digest(artifact)
    assert run("card", artifact, "--bench", folder) == 0
    text = (artifact / "README.md").read_text(encoding="utf-8")
    assert "| coco, 64 images | this artifact | another seed |" in text
    assert "| PSNR (dB) | 31.25 (30.50 to 32.00) | 11.50 (11.00 to 12.00) |" in text
    assert "| latent MSE, median | 0.01 | - |" in text
    assert "20 steps, guidance 7.5, PNDMScheduler, seeds 1, 2. Mean (95 % interval)" in text
    assert "Verdict: fine." in text
    assert "| speed |" not in text
    assert ModelCard(text).data.tags == ["bitbrush", "quantized"]
    assert manifest_digest(artifact) == before
    bitbrush.load(artifact)


def test_results_of_other_artifacts_are_refused(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (artifact / "README.md").read_bytes()
    for folder, message in (
        (results(tmp_path / "a", "1" * 64), "has no figures of this artifact (its candidates: other, ours)"),
        (results(tmp_path / "b", "1" * 64, candidates=[]), "(its candidates: none)"),
        (results(tmp_path / "c", "1" * 64, candidates=None), "holds no results of bitbrush bench"),
        (tmp_path / "nowhere", "holds no results of bitbrush bench"),
    ):
        assert run("card", artifact, "--bench", folder) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert (artifact / "README.md").read_bytes() == card


def test_speed_is_measured_with_the_named_runtime(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(evidence, "_now", lambda: next(ticks) / 50)
    pipe = bitbrush.load(artifact, runtime="reference")
    text = call_time(pipe, Recipe().updated(bitbrush.read_manifest(artifact)["recipe"]).plan)
    assert text.startswith("20 ms per denoiser call (median of 6, one image at a time); reference: ")
    assert "processor cores" in text
    assert not pipe.unet._forward_hooks
    assert not pipe.unet._forward_pre_hooks


def test_a_card_that_was_edited_is_left_without_a_word_to_replace_it(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = artifact / "README.md"
    assert run("card", artifact) == 0  # as it was written
    assert card.read_text(encoding="utf-8") == model_card(bitbrush.read_manifest(artifact), manifest_digest(artifact))
    card.write_text("mine", encoding="utf-8")
    assert run("card", artifact) == 2
    assert "give --overwrite to replace it" in " ".join(capsys.readouterr().err.split())
    assert card.read_text(encoding="utf-8") == "mine"
    assert run("card", artifact, "-o", tmp_path / "CARD.md") == 0
    assert run("card", artifact, "--overwrite") == 0
    assert card.read_text(encoding="utf-8") == (tmp_path / "CARD.md").read_text(encoding="utf-8")


def test_a_single_file_gets_its_card_beside_it(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(artifact, tmp_path / "one.safetensors")
    assert run("card", tmp_path / "one.safetensors") == 2
    assert "into which no card is written; give -o FILE" in " ".join(capsys.readouterr().err.split())
    assert run("card", tmp_path / "one.safetensors", "-o", tmp_path / "card.md") == 0
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == (artifact / "README.md").read_text(encoding="utf-8")


def test_a_damaged_artifact_gets_no_card(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (artifact / "unet" / "config.json").write_text("{}", encoding="utf-8")
    assert run("card", artifact) == 2
    assert "was altered or truncated" in capsys.readouterr().err


def test_a_table_is_of_the_candidate_with_the_digest(tmp_path: Path) -> None:
    path = results(tmp_path / "results", "a" * 64) / "results.json"
    assert bench_table(path, "a" * 64).count("\n| ") == 4
